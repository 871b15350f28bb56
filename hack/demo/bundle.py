"""The fix as a bundle, built once for each state of the builder and of Redis."""

from pathlib import Path

from hack.sources import redis
from hack.tools import REPOSITORY, cache, digest_of, lock, main, run, step

NAME = "redis-cve-2025-32023"


def ensure() -> Path:
    """Return the bundle of the demo's fix.

    Raises:
        ToolFailedError: the build refuses or fails.
    """
    source = redis.prepare()
    return build(source, NAME, source.fix, "--cve", redis.CVE)


def build(source: redis.Redis, name: str, patch: Path, *options: str) -> Path:
    """Return a bundle file; `podgraft build` makes it when sources, patch or builder have changed.

    Raises:
        ToolFailedError: the build refuses or fails.
    """
    key = digest_of(str(source.built), name, patch, REPOSITORY / "builder", REPOSITORY / "bundle")
    file = cache() / "demo" / key / f"{name}.graft"
    if file.exists():  # it appears by a rename, so it is whole
        return file
    with lock("demo-bundle"):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            with step(f"podgraft build: {name}"):
                run(
                    REPOSITORY / ".venv/bin/podgraft", "build", "--source", source.tree, "--patch", patch,
                    "--build", redis.BUILD, "--binary", redis.BINARY, "--running", source.server,
                    "--name", name, "--output", partial, *options,
                    log=cache() / "log" / "bundle.log",
                )  # fmt: skip
            partial.rename(file)
    return file


if __name__ == "__main__":
    main(lambda: print(ensure()))
