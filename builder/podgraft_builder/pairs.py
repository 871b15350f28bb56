"""Pairs of objects, old and new, and which of them have to be looked at."""

from dataclasses import dataclass
from pathlib import Path

from podgraft_builder.ahead import old_object
from podgraft_builder.compare import Comparison
from podgraft_builder.objects import ObjectFile
from podgraft_bundle.errors import Reason, Refusal

EMPTY = "(none)"


@dataclass(frozen=True)
class Pair:
    """One object of the binary before (None: a new file) and after (None: it is not linked any more)."""

    label: str
    old: bytes | None
    new: bytes | None


def compare_pairs(pairs: list[Pair]) -> dict[str, Comparison]:
    """Compare what differs; the result has one comparison per object that is not the same byte for byte."""
    found = {}
    for pair in pairs:
        if pair.old == pair.new or pair.new is None:
            continue
        new = ObjectFile(pair.label, pair.new)
        if pair.old is None:
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{pair.label} is a new object file",
                "put new functions into an existing source file",
            )
        found[pair.label] = Comparison(old_object(pair.label, pair.old), new).run()
    return found


def old_objects(pairs: list[Pair]) -> list[ObjectFile]:
    """Return the objects that the old binary is made of."""
    return [ObjectFile(pair.label, pair.old) for pair in pairs if pair.old is not None]


def unchanged_objects(pairs: list[Pair]) -> list[ObjectFile]:
    """Return the objects of the binary that are the same byte for byte."""
    return [ObjectFile(pair.label, pair.new) for pair in pairs if pair.new is not None and pair.old == pair.new]


def lost_objects(pairs: list[Pair]) -> list[ObjectFile]:
    """Return the objects of the old binary that the new one lacks."""
    return [ObjectFile(pair.label, pair.old) for pair in pairs if pair.old is not None and pair.new is None]


def read_folders(old: Path, new: Path) -> list[Pair]:
    """Return the pairs of two finished object trees, by relative path; objects that went away are left out."""
    pairs = []
    for path in sorted(new.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if data[:4] == b"\x7fELF" and data[16:18] == b"\x01\x00":  # ET_REL
            before = old / path.relative_to(new)
            pairs.append(Pair(str(path.relative_to(new)), before.read_bytes() if before.is_file() else None, data))
    return pairs
