"""What of a patch reached the compilers and the binary, and what did not."""

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
    return list({r.output: r for r in records if r.kind == "compile"}.values())


def require_seen(patched: set[str], old: list[Input], records: list[Record]) -> None:
    """A patched source that no compiler saw may be part of an object that the build command did not make."""
    depends = {name for r in records if r.kind == "compile" for name in r.depends}
    unseen = sorted(name for name in patched - depends if Path(name).suffix in C_LIKE)
    if not unseen:
        return
    foreign = _foreign(old, records)
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


def require_joined(forgotten: list[Record], made: dict[str, bytes], old: list[Input], records: list[Record]) -> None:
    """Refuse where an object that the build leaves alone may be part of what something else than a compiler made.

    made: the hash of each such object -> what was compiled in its place.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    foreign = _foreign(old, records) if forgotten else []
    if not foreign:
        return
    linked = {content_hash(item.data) for item in old}
    for record in forgotten:
        known = content_hash(record.copy.read_bytes())
        if known not in linked and content_hash(made.get(known, b"")) != known:
            raise Refusal(
                Reason.UNSUPPORTED_CHANGE,
                f"{record.output.name} changes, which the build command did not make anew, and"
                f" {foreign[0].path.name} was not made by a compiler alone: it may hold it",
                "start from a clean source tree, and let the build command make all of it",
            )


def require_kept(link: Record) -> None:
    """Refuse a link that took objects which only the compiler's driver knew, and has deleted.

    Raises:
        Refusal(UNSUPPORTED_CHANGE).
    """
    own = (".ltrans.o", ".debug.temp.o")  # what link-time optimisation makes of objects that are there
    lost = [p for p in loaded(link) if p.suffix == ".o" and not p.name.endswith(own) and not p.exists()]
    if lost:
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{link.output.name} was linked from {len(lost)} objects that are not there any more ({lost[0]})",
            "name the sources in the compiler's command itself, or compile them with -c",
        )


def steering(names: list[Path], records: list[Record], tree: Path) -> Path | None:
    """Return a patched file that may decide what is built and how: one that no compiler read, such as a makefile.

    Make does not build anew what was built by other rules or flags, and makefiles may not name all that is made
    from other files. Sources that nobody compiles, tests and documentation do not count.
    """
    read = {name for record in records for name in record.depends}
    for name in names:
        prose = (
            name.suffix in _PROSE or _MANUAL.fullmatch(name.suffix) or name.stem.partition(".")[0].upper() in _PAPERS
        )
        folder = {part.lower() for part in name.parts[:-1]} & _ASIDE
        inert = (prose and name.name not in _RULES) or folder or name.suffix in C_LIKE
        if not inert and str((tree / name).resolve()) not in read:
            return name
    return None


def left_out(
    tree: Path, patched: set[str], linked: list[Input], records: list[Record], fresh: list[Record]
) -> Iterator[str]:
    """Tell what of the patch the bundle cannot hold: sources that nobody compiled, code of other programs."""
    tree = tree.resolve()
    known = {r.output: content_hash(r.copy.read_bytes()) for r in last_of_each(records)}
    compiled = [r for r in (*records, *fresh) if r.kind == "compile"]
    seen = {name for r in compiled for name in r.depends}
    for name in sorted(name for name in patched - seen if Path(name).suffix in C_LIKE):
        yield f"not in the bundle: {Path(name).relative_to(tree)} is patched, but the build does not compile it"
    taken = {content_hash(item.data) for item in linked}
    for record in last_of_each(fresh):
        made = content_hash(record.copy.read_bytes())
        if made != known.get(record.output) and made not in taken:
            place = record.output.relative_to(tree) if record.output.is_relative_to(tree) else record.output
            yield f"not in the bundle: {place} changes, but is no part of this binary"
