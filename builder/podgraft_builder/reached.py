"""What of a patch reached the compilers and the binary, and what did not."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from podgraft_builder.lines import C_LIKE
from podgraft_builder.records import Input, Record, content_hash, loaded
from podgraft_bundle.errors import Reason, Refusal

_PROSE = frozenset([".md", ".txt", ".rst", ".html", ".css", ".tex", ".texi", ".po", ".pot", ".adoc"])
_MANUAL = re.compile(r"\.[1-9]\w*")
_PAPERS = frozenset(
    ["NEWS", "CHANGES", "CHANGELOG", "README", "AUTHORS", "THANKS", "TODO", "COPYING", "LICENSE", "00-RELEASENOTES"]
)
_RULES = frozenset(["CMakeLists.txt", "meson_options.txt"])
_ASIDE = frozenset(
    ["test", "tests", "testsuite", "testdata", "testcode", "t", "doc", "docs", "man", "examples", ".github"]
)


def last_of_each(records: list[Record]) -> list[Record]:
    """Return the last record of each object."""
    return list({_made(r): r for r in records if r.kind == "compile"}.values())


def require_seen(patched: set[str], old: list[Input], records: list[Record], source: Path, tree: Path) -> None:
    """A patched file that no compiler saw may be part of an object that was there before the build command."""
    depends = {name for r in records if r.kind == "compile" for name in r.depends}
    unseen = sorted(name for name in patched - depends if Path(name).suffix in C_LIKE)
    if not unseen:
        return
    foreign = [item for item in _foreign(old, records) if (source / item.path.relative_to(tree)).exists()]
    if foreign:
        member = foreign[0].member or ""
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{unseen[0]} is patched but was not compiled, and {len(foreign)} objects of the binary were not either"
            f" ({foreign[0].path.name} {member})",
            "start from a clean source tree (make distclean) and name the binary with --running",
        )


def _foreign(linked: list[Input], records: list[Record]) -> list[Input]:
    """Return the objects of a link that no compiler call made as they are."""
    compiled = {content_hash(r.copy.read_bytes()) for r in records if r.kind == "compile"}
    return [item for item in linked if content_hash(item.data) not in compiled]


def require_anew(missing: list[Record], fresh: list[Record], tree: Path) -> None:
    """Refuse where an object that is made from a patched file is there and was not made, not even from a fresh copy.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    done = {r.output for r in fresh if r.kind == "compile"}
    for record in missing:
        there = record.output not in done and Path(record.program or record.output).exists()
        if there and Path(record.source).exists():
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{place_of(record, tree)} is made from a patched file, and the build command does not make it anew",
                "start from a clean source tree, and let the build command make all of it there",
            )


def require_kept(link: Record) -> None:
    """Refuse a link that took objects which only the compiler's driver knew, and has deleted; archives likewise.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    own = (".ltrans.o", ".debug.temp.o")  # what link-time optimisation makes of objects that are there
    lost = [p for p in loaded(link) if p.suffix in {".o", ".a"} and not p.name.endswith(own) and not p.exists()]
    if lost:
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{link.output.name} was linked from {len(lost)} objects that are not there any more ({lost[0]})",
            "name the sources in the compiler's command itself, or compile them with -c",
        )


def require_inside(link: Record, tree: Path, records: list[Record]) -> None:
    """Refuse a link that took what the build command makes in a place that all builds share.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    copies = {r.output: r.copy for r in records if r.kind == "compile"}
    begun = min(path.stat().st_mtime_ns for path in [link.map, *copies.values()])
    for path in loaded(link):
        if path.is_relative_to(tree) or (path in copies and path.parent == copies[path].parent):
            continue
        if path in copies or (path.suffix == ".a" and path.stat().st_mtime_ns >= begun):
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{link.output.name} takes {path}, which the build command makes outside of the source tree",
                "let the build command make all objects in the tree, each of whose builds has a copy of its own",
            )


def forgotten(patched: set[str], records: list[Record], fresh: list[Record]) -> list[Record]:
    """Return the last record of each object that is made from a patched file and that the new build left alone."""
    done = {_made(r) for r in fresh if r.kind == "compile"}
    return [r for r in last_of_each(records) if r.depends & patched and _made(r) not in done]


def place_of(record: Record, tree: Path) -> Path:
    """Return the name by which people know an object."""
    place = Path(record.source) if record.program else record.output
    return place.relative_to(tree) if place.is_relative_to(tree) else place


def _made(record: Record) -> tuple[str, ...]:
    """Return what tells an object from others: several may have had one name, one after the other."""
    if record.program:
        return record.program, record.source
    return str(record.output), record.source, *record.arguments


def why_whole(names: list[Path], old: list[Input], records: list[Record], source: Path, tree: Path) -> str | None:
    """Tell why all has to be built anew, if it has: what depends on the patched files is not known by the records.

    Make does not build anew what was built by other rules or flags, and makefiles may not name all that is made
    from other files. Sources that nobody compiles, tests and documentation do not count.
    """
    names = [name for name in names if not _is_aside(name)]
    paths = {str((tree / name).resolve()): name for name in names}
    read = {name for record in records for name in record.depends}
    for path, name in paths.items():
        if path not in read and not (source / name).exists():
            return f"{name} is new and may be found in the place of another file"
        if path not in read and name.suffix not in C_LIKE:
            return f"{name} may decide what is built, and how"
    if not any(name.suffix in C_LIKE for name in names):
        return None
    return _unknown(set(paths), old, records, source, tree)


def _unknown(patched: set[str], old: list[Input], records: list[Record], source: Path, tree: Path) -> str | None:
    """Tell of what it is not known whether it is made from patched files."""
    blind = next((r for r in records if r.kind == "blind" and Path(r.source).exists()), None)
    if blind is not None:  # what configure tries is gone by then
        return f"what {place_of(blind, tree)} is made from is not known"
    compiled = {r.source for r in records if r.kind == "compile"}
    for text in {r.source for r in records if r.kind == "text"} - compiled:
        if Path(text).is_relative_to(tree) and (source / Path(text).relative_to(tree)).exists():
            return f"{Path(text).relative_to(tree)} is made into text by the compiler"
    if patched - {str(Path(name).resolve()) for name in compiled}:
        foreign = _foreign(old, records)
        if foreign:
            return f"what {foreign[0].label(tree)} is made from is not known"
    return None


def _is_aside(name: Path) -> bool:
    """Say whether a file is documentation, or belongs to tests."""
    prose = name.suffix in _PROSE or _MANUAL.fullmatch(name.suffix) or name.stem.partition(".")[0].upper() in _PAPERS
    return bool((prose and name.name not in _RULES) or {part.lower() for part in name.parts[:-1]} & _ASIDE)


def only_linked(names: list[Path], before: Record, after: Record, tree: Path) -> Iterator[str]:
    """Tell what of the patch the linker alone sees: its own command, and what that names, such as version scripts."""
    if after.arguments != before.arguments:
        yield f"not in the bundle: the command that links {before.output.name} changes"
    parts = {part.removeprefix("-T") for word in before.arguments for part in re.split("[,=]", word)}
    named = {os.path.normpath(before.cwd / part) for part in parts}
    for name in names:
        if name.suffix not in C_LIKE and str(tree / name) in named:
            yield f"not in the bundle: {name} is patched, which the linker reads"


def left_out(
    tree: Path, patched: set[str], linked: list[Input], records: list[Record], fresh: list[Record]
) -> Iterator[str]:
    """Tell what of the patch the bundle cannot hold: sources that nobody compiled, code of other programs."""
    tree = tree.resolve()
    known = {_made(r): content_hash(r.copy.read_bytes()) for r in last_of_each(records)}
    compiled = [r for r in (*records, *fresh) if r.kind == "compile"]
    seen = {name for r in compiled for name in r.depends}
    for name in sorted(name for name in patched - seen if Path(name).suffix in C_LIKE):
        yield f"not in the bundle: {Path(name).relative_to(tree)} is patched, but the build does not compile it"
    taken = {content_hash(item.data) for item in linked}
    for record in last_of_each(fresh):
        made = content_hash(record.copy.read_bytes())
        if made != known.get(_made(record)) and made not in taken:
            yield f"not in the bundle: {place_of(record, tree)} changes, but is no part of this binary"
