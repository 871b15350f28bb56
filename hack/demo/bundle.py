"""The fix as a signed bundle, built once for each state of the builder and of Redis, and the key that signs it."""

from pathlib import Path

from hack.sources import redis
from hack.tools import REPOSITORY, cache, digest_of, lock, main, run, step

NAME = "redis-cve-2025-32023"
PODGRAFT = REPOSITORY / ".venv/bin/podgraft"


def ensure() -> Path:
    """Return the bundle of the demo's fix.

    Raises:
        ToolFailedError: the build refuses or fails.
    """
    source = redis.prepare()
    return build(source, NAME, source.fix, "--cve", redis.CVE)


def public_key() -> Path:
    """Return the public half of the demo's key, which is made once on each machine."""
    key = cache() / "demo" / "key" / "demo"
    public = key.with_suffix(".pub")
    with lock("demo-key"):
        if not public.exists():
            key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            run(PODGRAFT, "keygen", "--output", key)
    return public


def build(source: redis.Redis, name: str, patch: Path, *options: str) -> Path:
    """Return a bundle file; `podgraft build` makes it when sources, patch, builder or key have changed.

    Raises:
        ToolFailedError: the build refuses or fails.
    """
    public = public_key()
    key = digest_of(str(source.built), name, patch, REPOSITORY / "builder", REPOSITORY / "bundle", public)
    file = cache() / "demo" / key / f"{name}.graft"
    if file.exists():  # it appears by a rename, so it is whole
        return file
    with lock("demo-bundle"):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            with step(f"podgraft build: {name}"):
                run(
                    PODGRAFT, "build", "--source", source.tree, "--patch", patch,
                    "--build", redis.BUILD, "--binary", redis.BINARY, "--running", source.server,
                    "--name", name, "--output", partial, *options,
                    log=cache() / "log" / "bundle.log",
                )  # fmt: skip
            run(PODGRAFT, "sign", partial, "--key", public.with_suffix(".key"))
            partial.rename(file)
    return file


if __name__ == "__main__":
    main(lambda: print(ensure()))
