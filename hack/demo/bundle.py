"""The fix as a bundle, built once for each state of the builder and of Redis."""

from pathlib import Path

from hack.sources import redis
from hack.tools import REPOSITORY, cache, digest_of, lock, main, run, step

NAME = "redis-cve-2025-32023"


def ensure() -> Path:
    """Return the bundle file; `podgraft build` makes it when sources or builder have changed.

    Raises:
        ToolFailedError: the build refuses or fails.
    """
    source = redis.prepare()
    key = digest_of(str(source.built), REPOSITORY / "builder", REPOSITORY / "bundle")
    file = cache() / "demo" / key / f"{NAME}.graft"
    with lock("demo-bundle"):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            with step("podgraft build: the fix of CVE-2025-32023 as a bundle"):
                run(
                    REPOSITORY / ".venv/bin/podgraft", "build", "--source", source.tree, "--patch", source.fix,
                    "--build", redis.BUILD, "--binary", redis.BINARY, "--running", source.server,
                    "--name", NAME, "--cve", redis.CVE, "--output", partial,
                    log=cache() / "log" / "bundle.log",
                )  # fmt: skip
            partial.rename(file)
    return file


if __name__ == "__main__":
    main(lambda: print(ensure()))
