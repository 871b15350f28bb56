"""What of a patch reached the compilers and the binary, and what did not."""

from collections.abc import Iterator
from pathlib import Path

from podgraft_builder.lines import C_LIKE
from podgraft_builder.records import Input, Record, content_hash
from podgraft_bundle.errors import Reason, Refusal


def last_of_each(records: list[Record]) -> list[Record]:
    """Return the last record of each object."""
    return list({r.output: r for r in records if r.kind == "compile"}.values())


def require_seen(patched: set[str], old: list[Input], records: list[Record]) -> None:
    """A patched source that no compiler saw may be part of an object that the build command did not make."""
    compiled = [r for r in records if r.kind == "compile"]
    depends = {name for r in compiled for name in r.depends}
    unseen = sorted(name for name in patched - depends if Path(name).suffix in C_LIKE)
    if not unseen:
        return
    known = {content_hash(r.copy.read_bytes()) for r in compiled}
    foreign = [item for item in old if content_hash(item.data) not in known]
    if foreign:
        member = foreign[0].member or ""
        raise Refusal(
            Reason.UNSUPPORTED_CHANGE,
            f"{unseen[0]} is patched but was not compiled, and {len(foreign)} objects of the binary were not either"
            f" ({foreign[0].path.name} {member})",
            "start from a clean source tree (make distclean) and name the binary with --running",
        )


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
