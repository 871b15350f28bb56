"""The folders that become layers."""

import shutil
import sys
from pathlib import Path

from hack.images.recipes import CODE, LIBRARIES, SCRIPT, Program
from hack.sources import redis
from hack.tools import REPOSITORY, cache, run

UV = REPOSITORY / ".venv" / "bin" / "uv"
LOCK = REPOSITORY / "requirements.lock"
LOAD = REPOSITORY / "examples" / "redis" / "load"
PAUSE = Path(__file__).parent / "pause.c"
WARNINGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def libraries(program: Program, root: Path) -> None:
    """Install what the program needs from the lock file, for the Python of the base image; no code of ours."""
    target = root / LIBRARIES
    for_base = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_36", "--only-binary", ":all:")
    run(
        UV, "pip", "install", "--quiet", "--no-config", *for_base, "--target", target, "--constraint", LOCK,
        "--requirements", REPOSITORY / "pyproject.toml", "--extra", program.extra,
        cwd=REPOSITORY, log=cache() / "log" / f"{program.name}-libraries.log",
    )  # fmt: skip
    shutil.rmtree(target / "bin", ignore_errors=True)
    _compile(root, LIBRARIES)
    _make_importable(root)


def code(program: Program, root: Path) -> None:
    """Install the project, take away the packages that are not the program's, and write the console scripts."""
    log = cache() / "log" / f"{program.name}-code.log"
    run(UV, "pip", "install", "--quiet", "--no-config", "--no-deps", "--target", root / CODE, REPOSITORY, log=log)
    for package in (root / CODE).glob("podgraft_*"):
        if package.name not in program.packages:
            shutil.rmtree(package)
    shutil.rmtree(root / CODE / "bin")
    _compile(root, CODE)
    scripts = root / "usr/bin"
    scripts.mkdir(parents=True)
    for name, module in program.scripts.items():
        (scripts / name).write_text(SCRIPT.format(module=module))
        (scripts / name).chmod(0o755)


def demo_redis(root: Path) -> None:
    """Redis before the fix, redis-cli and the load generator."""
    built, folder = redis.prepare(), root / "usr/local/bin"
    folder.mkdir(parents=True)
    shutil.copy(built.client, folder)
    # The symbols stay out of the image: podgraft must do without them.
    run("strip", "--strip-all", "-o", folder / "redis-server", built.server)
    load_generator(folder)


def load_generator(folder: Path, protocol: Path = LOAD / "redis.c") -> Path:
    """Compile the load generator for one protocol into a folder; return the program, "redis-load" for redis.c."""
    program = folder / f"{protocol.stem}-load"
    run("gcc", *WARNINGS, "-D_GNU_SOURCE", "-pthread", "-I", LOAD, "-o", program, LOAD / "load.c", protocol)
    return program


def pause(root: Path) -> None:
    """Build the process that holds a pod's namespaces open."""
    root.mkdir(parents=True, exist_ok=True)
    run("gcc", *WARNINGS, "-static", "-o", root / "pause", PAUSE)


def _compile(root: Path, folder: str) -> None:
    """Put bytecode beside the modules, for the same Python as ours, which is the base's; another one ignores it.

    The file systems of our containers are read-only, so each start of the engine would compile everything anew. Times
    are not kept in a layer, so they can't tell whether bytecode is up to date: it is believed.
    """
    options = ("-q", "-j", "0", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/")
    run(sys.executable, "-m", "compileall", *options, root / folder)


def _make_importable(root: Path) -> None:
    # A path file, not PYTHONPATH: child processes find the code whatever their environment is.
    packages = root / "usr/lib/python3/dist-packages"
    packages.mkdir(parents=True)
    (packages / "podgraft.pth").write_text(f"/{LIBRARIES}\n/{CODE}\n")
