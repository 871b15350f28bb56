"""The old build of a tree, kept: the next patch for the same tree costs one incremental build.

It is used only where everything that made it is as it was: tree, command, environment, compilers, system headers.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from podgraft_builder.records import Record, loaded, read_log

# What differs from one terminal to the next and says nothing about a build.
_VOLATILE = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES", "PODGRAFT_STORE", "PODGRAFT_BIN"})
_TOOLS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "as", "ld", "ar", "make")
KEEP = 3
NONE = "none"


def state_of(source: Path, environment: dict[str, str], command: str) -> str:
    """Return a digest of all that goes into a build, but for what lies outside the tree (see `keep`)."""
    total = hashlib.sha256(command.encode())
    for name, value in sorted(environment.items()):
        if name not in _VOLATILE and not name.startswith("CCACHE_"):  # a cache changes nothing of what is built
            total.update(f"\0{name}={value}".encode(errors="surrogateescape"))
    for tool in _TOOLS:
        stamps = "\0".join(map(_stamp, _on_path(tool)))
        total.update(f"\0{stamps}".encode(errors="surrogateescape"))
    for file in sorted(Path(__file__).parent.glob("*.py")):
        total.update(file.read_bytes())
    for folder, folders, files in os.walk(source):
        folders.sort()
        for name in sorted([*files, *folders]):
            path = Path(folder, name)
            total.update(f"\0{path.relative_to(source)}\0{path.lstat().st_mode}".encode(errors="surrogateescape"))
            if path.is_symlink():
                total.update(str(path.readlink()).encode(errors="surrogateescape"))
            if path.is_file():  # also where a link leads out of the tree
                total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def keep(root: Path, tree: Path, state: str, store: Path, since: int) -> None:
    """Keep the tree as it was built, and note the compilers and the files outside of it that they read or linked.

    Nothing is kept where one of these has changed since the build began: which of both was read cannot be told.
    """
    records = read_log(store)
    read = {name for record in records for name in record.depends if not Path(name).is_relative_to(tree)}
    compilers = {path for name in {record.compiler for record in records} for path in _on_path(name)}
    links = [record for record in records if record.kind == "link" and record.output.is_file()]
    linked = {str(path) for link in links for path in loaded(link) if not path.is_relative_to(tree)}
    used = sorted(name for name in read | compilers | linked if not Path(name).is_relative_to(store))
    outside = {name: _stamp(name) for name in used}
    if any(Path(name).stat().st_ctime_ns >= since for name, stamp in outside.items() if stamp != NONE):
        return
    for name in ("kept", "spare"):
        shutil.rmtree(root / name, ignore_errors=True)
    copy(tree, root / "kept")
    (root / "kept.json").write_text(json.dumps({"state": state, "outside": outside}))


def restore(root: Path, tree: Path, state: Callable[[], str], store: Path) -> list[Record] | None:
    """Put a copy of a kept build in the place of the tree and return its records; one of another state is given up.

    Raises:
        OSError: it cannot be copied; the next build is made from scratch.
    """
    note = root / "kept.json"
    if not note.is_file():
        return None
    records = None
    try:
        found = read_log(store) if _fits(note, state) else None
        told = [r.copy if r.kind == "compile" else r.map for r in found or [] if r.kind in {"compile", "link"}]
        if found is not None and (root / "kept").is_dir() and all(path.is_file() for path in told):
            shutil.rmtree(tree, ignore_errors=True)
            _make_spare(root)
            (root / "spare").rename(tree)
            records = found
    finally:
        if records is None:
            note.unlink()  # its store is about to be written anew
    return records


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
        copy(root / "kept", partial)
        partial.rename(root / "spare")


def _fits(note: Path, state: Callable[[], str]) -> bool:
    try:
        known = json.loads(note.read_text())
    except ValueError:  # whoever wrote it was killed
        return False
    return known["state"] == state() and all(_stamp(name) == stamp for name, stamp in known["outside"].items())


def copy(tree: Path, to: Path) -> None:
    """Copy a tree with its times to a place where nothing is; cp takes half the time of shutil. Raises OSError."""
    to.mkdir()
    result = subprocess.run(["cp", "-a", f"{tree}/.", to], capture_output=True, check=False)
    if result.returncode != 0:
        raise OSError(result.stderr.decode(errors="replace").strip())


def _stamp(name: str) -> str:
    """Return what changes when a file does; link targets are followed."""
    if not Path(name).exists():
        return NONE
    found = Path(name).stat()  # the time of change as well: package managers set that of modification
    return f"{Path(name).resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _on_path(tool: str) -> list[str]:
    """Return all places where a tool may be: the first may be a cache's, which calls the next."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return [str(Path(folder, tool)) for folder in folders if folder]


def prune(cache: Path) -> None:
    """Delete all but the last few kept builds, and what killed builds left; one that is in use is left alone."""
    notes = sorted(cache.glob("build-*/kept.json"), key=lambda note: note.stat().st_mtime)
    lasting = {note.parent for note in notes[-KEEP:]}
    for root in cache.glob("build-*/"):
        ours = re.fullmatch(r"build-[0-9a-f]{16}", root.name)  # the folder may hold what others call a build
        lock = try_lock(root) if ours and root not in lasting else None
        if lock is not None:
            with lock:
                (root / "kept.json").unlink(missing_ok=True)  # first: half a build must not be taken for a whole one
                shutil.rmtree(root, ignore_errors=True)


def try_lock(root: Path) -> IO[str] | None:
    """Return the lock of a place for builds, None where another has it."""
    lock = root.with_name(f"{root.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
