"""The old build of a tree, kept: the next patch for the same tree costs one incremental build.

It is used only where everything that made it is as it was: tree, command, environment, compilers, system headers.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from podgraft_builder.records import Record, read_log

# What differs from one terminal to the next and says nothing about a build.
_VOLATILE = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "PODGRAFT_STORE", "PODGRAFT_BIN"})
_TOOLS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "as", "ld", "ar", "make")
KEEP = 3


def state_of(source: Path, environment: dict[str, str], command: str) -> str:
    """Return a digest of all that goes into a build, but for what lies outside the tree (see `keep`)."""
    total = hashlib.sha256(command.encode())
    for name, value in sorted(environment.items()):
        if name not in _VOLATILE and not name.startswith("CCACHE_"):  # a cache changes nothing of what is built
            total.update(f"\0{name}={value}".encode(errors="surrogateescape"))
    for tool in _TOOLS:
        total.update(f"\0{_stamp(shutil.which(tool))}".encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        total.update(file.read_bytes())
    for folder, folders, files in os.walk(source):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(folder, name)
            total.update(f"\0{path.relative_to(source)}\0{path.lstat().st_mode}".encode(errors="surrogateescape"))
            if path.is_symlink():
                total.update(str(path.readlink()).encode(errors="surrogateescape"))
            elif path.is_file():
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def keep(root: Path, tree: Path, state: str, store: Path) -> None:
    """Keep the tree as it was built, and note the files outside of it that the compilers read."""
    for name in ("kept", "spare"):
        shutil.rmtree(root / name, ignore_errors=True)
    _copy(tree, root / "kept")
    read = {name for record in read_log(store) for name in record.depends}
    outside = {name: _stamp(name) for name in sorted(read) if not Path(name).is_relative_to(tree)}
    (root / "kept.json").write_text(json.dumps({"state": state, "outside": outside}))


def restore(root: Path, tree: Path, state: Callable[[], str], store: Path) -> list[Record] | None:
    """Put a copy of a kept build in the place of the tree and return its records; one of another state is given up."""
    note = root / "kept.json"
    if not note.is_file():
        return None
    known = json.loads(note.read_text())
    if known["state"] != state() or any(_stamp(name) != stamp for name, stamp in known["outside"].items()):
        note.unlink()  # its store is about to be written anew
        return None
    shutil.rmtree(tree, ignore_errors=True)
    _make_spare(root)
    (root / "spare").rename(tree)
    return read_log(store)


@contextmanager
def sparing(root: Path) -> Iterator[None]:
    """Copy a kept build for the next patch meanwhile: comparing leaves a processor free, and make does not.

    A copy that fails is not missed: the next patch tries again, and says what is wrong.
    """
    with ThreadPoolExecutor(1) as pool:
        if (root / "kept.json").is_file():
            pool.submit(_make_spare, root)
        yield


def _make_spare(root: Path) -> None:
    """Copy the kept build to `spare`, whole or not at all. Raises OSError."""
    partial = root / "spare.partial"
    if not (root / "spare").exists():
        shutil.rmtree(partial, ignore_errors=True)
        _copy(root / "kept", partial)
        partial.rename(root / "spare")


def _copy(tree: Path, to: Path) -> None:
    """Copy a tree with its times to a place where nothing is; cp takes half the time of shutil. Raises OSError."""
    to.mkdir()
    result = subprocess.run(["cp", "-a", f"{tree}/.", to], capture_output=True, check=False)
    if result.returncode != 0:
        raise OSError(result.stderr.decode(errors="replace").strip())


def _stamp(name: str | None) -> str:
    """Return what changes when a file does; link targets are followed."""
    if name is None or not Path(name).exists():
        return "none"
    found = Path(name).stat()
    return f"{Path(name).resolve()} {found.st_size} {found.st_mtime_ns}"


def prune(cache: Path) -> None:
    """Delete all but the last few kept builds; one that is in use is left alone."""
    notes = sorted(cache.glob("build-*/kept.json"), key=lambda note: note.stat().st_mtime)
    for note in notes[:-KEEP]:
        with (cache / f"{note.parent.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            note.unlink()  # first: half a build must not be taken for a whole one
            shutil.rmtree(note.parent, ignore_errors=True)
