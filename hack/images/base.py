"""The file system that all images stand on: Debian minbase with Python, and nothing that a container does not read."""

import os
import shutil
import tempfile
from pathlib import Path

from hack.apt import archives
from hack.tools import cache, run, step

CODENAME = "bookworm"
INCLUDE = "python3,ca-certificates"
# The copyright files stay: what is distributed goes with its licence.
DROPPED = (
    "dev",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/info",
)
RECIPE = f"{CODENAME} {INCLUDE} {DROPPED} with bytecode"


def archive(key: str) -> Path:
    """Return the base as a tar file, made at the first call; `key` names this recipe in the cache."""
    file = cache() / "images" / f"base-{key}.tar"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with step("base image (debootstrap)"), tempfile.TemporaryDirectory(dir=file.parent) as folder:
            root = Path(folder) / "root"
            mirror = archives(CODENAME)[0].uri
            log = cache() / "log" / "debootstrap.log"
            run("debootstrap", "--variant=minbase", f"--include={INCLUDE}", CODENAME, root, mirror, log=log)
            _trim(root)
            partial = file.with_suffix(f".{os.getpid()}")
            run("tar", "--sort=name", "--numeric-owner", "-C", root, "-cf", partial, ".")
            partial.rename(file)
    return file


def _trim(root: Path) -> None:
    for name in DROPPED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    for document in (root / "usr/share/doc").rglob("*"):
        if document.is_file() and document.name != "copyright":
            document.unlink()
    # The mirror of the machine that built the image means nothing where it runs.
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
