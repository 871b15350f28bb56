"""A real OCI registry for tests: Debian's docker-registry, taken out of its package.

It is not installed: the package would start a service that listens on every address of the machine.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from hack.tools import cache, lock, main, run, step

PACKAGE = "docker-registry"


def ensure() -> Path:
    """Return the program; apt fetches its package the first time.

    Raises:
        ToolFailedError: apt has no such package, or no network.
    """
    program = cache() / "bin" / PACKAGE
    with lock(PACKAGE):
        if not program.exists():
            with step(f"{PACKAGE} from its package"), TemporaryDirectory(dir=cache()) as folder:
                run("apt-get", "-o", "APT::Sandbox::User=root", "download", PACKAGE, cwd=Path(folder))
                package = next(Path(folder).glob("*.deb"))
                run("dpkg-deb", "--extract", package, folder)
                program.parent.mkdir(exist_ok=True)
                (Path(folder) / "usr/bin" / PACKAGE).rename(program)
    return program


if __name__ == "__main__":
    main(lambda: print(ensure()))
