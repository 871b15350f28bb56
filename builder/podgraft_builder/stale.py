"""A tree that was configured where it lay: what its files say about that place is wrong in the copies."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from podgraft_builder.records import Record
from podgraft_bundle.errors import Reason, Refusal

# What marks a build folder with absolute paths in all its files -> what of it goes where the folder is the tree itself.
_MARKS = {"CMakeCache.txt": ("CMakeCache.txt", "CMakeFiles"), "meson-private": ("meson-private", "build.ninja")}


def remove_configured(tree: Path) -> list[Path]:
    """Delete the build folders of cmake and meson: they would refuse the copy, or build the original; return them."""
    removed = []
    for mark, own in _MARKS.items():
        for found in sorted(tree.rglob(mark)):
            folder = found.parent
            if not found.exists():
                continue  # below a folder that is gone already
            removed.append(folder)
            if folder != tree:
                shutil.rmtree(folder)
                continue
            for name in own:
                shutil.rmtree(tree / name) if (tree / name).is_dir() else (tree / name).unlink(missing_ok=True)
    return removed


def stands_for_object(path: Path, *, archives: bool) -> bool:
    """Say whether a file is what libtool writes beside an object or library, and what make looks at in its place.

    That of a library that is nothing but an archive stands for it: it goes only with archives.
    """
    if path.suffix not in {".lo", ".la"}:
        return False
    text = path.read_bytes()
    if b"- a libtool object file" in text:
        return True
    return b"- a libtool library file" in text and (archives or b"\ndlname=''\n" not in text)


def require_copies(records: Iterable[Record], source: Path, names: Iterable[Path]) -> None:
    """Refuse where a compiler read a patched file in the original tree, which has no patch.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    originals = {str((source / name).resolve()) for name in names}
    for record in records:
        for name in sorted(record.depends & originals):
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{record.output.name} is made from {name}, not from the copy that has the patch: the tree was"
                " configured with absolute paths",
                "start from a clean source tree, name the binary with --running, and configure in the build command",
            )
