"""Debian source packages, by `apt-get source` with an apt state of our own, so that the machine's stays as it is."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from hack.apt import archives
from hack.tools import ToolFailedError, cache, lock, run, step

SUMS = Path(__file__).parent / "SHA256SUMS"
CODENAME = "bookworm"


def checksums(sums: Path = SUMS) -> dict[str, str]:
    """Return the SHA-256 of every file by its name, as committed."""
    lines = (line.split() for line in sums.read_text().splitlines())
    return {name: digest for digest, name in lines}


def ensure(package: str, version: str, sums: Path = SUMS, codename: str = CODENAME) -> Path:
    """Return a folder with the checked files of one source package.

    Looks into PODGRAFT_SOURCES first, then into the cache, and asks apt last, for a package of the release `codename`.

    Raises:
        ToolFailedError: nobody has that version, or a file is not the one that was committed to.
    """
    wanted = {name: digest for name, digest in checksums(sums).items() if name.startswith(f"{package}_")}
    given = os.environ.get("PODGRAFT_SOURCES")
    store = cache() / "sources"
    for folder in ([Path(given)] if given else []) + [store]:
        if all((folder / name).exists() for name in wanted):
            _check(folder, wanted)
            return folder
    with lock("sources"), step(f"source of {package} {version} (apt)"):
        _download(f"{package}={version}", codename, wanted, store)
    return store


def _check(folder: Path, wanted: dict[str, str]) -> None:
    for name, digest in wanted.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != digest:
            raise ToolFailedError(f"{folder / name} has SHA-256 {found}, but {digest} was expected")


def _download(package: str, codename: str, wanted: dict[str, str], store: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        root = Path(folder)
        # apt fetches as user _apt, who has no business in a home folder: it says so and goes on as root.
        options = _apt_options(root, codename)
        run("apt-get", *options, "update", log=cache() / "log" / "apt-source.log")
        log = cache() / "log" / "apt-source.log"
        run("apt-get", *options, "source", "--download-only", package, cwd=root, log=log)
        _check(root, wanted)
        store.mkdir(parents=True, exist_ok=True)
        for name in wanted:
            shutil.copy(root / name, store / name)


def _apt_options(root: Path, codename: str) -> list[str]:
    for folder in ("lists/partial", "archives/partial", "parts"):
        (root / folder).mkdir(parents=True)
    sources = root / "sources.list"
    sources.write_text("\n".join(one.source_line() for one in archives(codename)) + "\n")
    settings = {
        "Dir::State::lists": root / "lists",
        "Dir::Cache": root,
        "Dir::Cache::archives": root / "archives",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": root / "parts",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
