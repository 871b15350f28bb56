"""The tree is built twice, before and after the patch: what was made, object by object."""

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from podgraft_builder.ahead import reading_ahead, touched
from podgraft_builder.modules import check_modules, other_modules
from podgraft_builder.options import Options, Progress
from podgraft_builder.pairs import Pair
from podgraft_builder.reached import (
    forgotten,
    left_out,
    only_linked,
    place_of,
    require_anew,
    require_inside,
    require_kept,
    require_seen,
    why_whole,
)
from podgraft_builder.records import Input, Record, inputs_of, link_of
from podgraft_builder.stale import require_copies
from podgraft_builder.verdict import Verdict
from podgraft_builder.workspace import Workspace, patched_names
from podgraft_bundle.errors import Reason, Refusal


class Patch(NamedTuple):
    """A patch, and what the compilers read in the old build."""

    file: Path
    read: frozenset[str]


def running_binary(space: Workspace, options: Options, progress: Progress) -> tuple[Path, str]:
    """Choose the binary that runs: named, built in place, or built now without any added flag."""
    in_place = options.source / options.binary
    if options.running is not None:
        if not options.running.is_file():
            raise Refusal(Reason.BINARY_NOT_BUILT, f"{options.running} is not there", "check --running")
        return options.running, "as named"
    if in_place.is_file():
        return in_place, "built in place"
    progress("plain build, for the binary that runs")
    space.copy_tree()
    space.build("plain", flags="")
    made = space.tree / options.binary
    _require_binary(made, options)
    kept = options.output.with_name(f"{options.output.stem}.{options.binary.name}")
    shutil.copy2(made, kept)
    return kept, "built plainly, kept beside the bundle"


def two_builds(space: Workspace, options: Options, progress: Progress, verdict: Verdict) -> list[Pair]:
    """Build the old tree fully, and of the new one what the patch touches; return the objects of the binary."""
    binary = space.tree / options.binary
    records = space.restore()
    if records is None:
        progress("old build, one section per function")
        state, since = space.state(), time.time_ns()
        records = _whole_build(space, options, "old")
        space.keep(state, since)
    else:
        progress("old build: the one that is kept from an earlier patch")
    _require_binary(binary, options)
    old_link = link_of(records, binary)
    if old_link is None:
        raise Refusal(
            Reason.BUILD_FAILED,
            f"{options.binary} was made without a compiler call that podgraft could see",
            "call the compiler by name (gcc, cc, clang), not by a path; name what it links (--binary), not a copy",
        )
    require_kept(old_link)
    require_inside(old_link, space.tree, records)
    old = inputs_of(old_link, space.tree, records, records)
    if not old:
        raise Refusal(
            Reason.BUILD_FAILED,
            f"the linker's map of {options.binary} names no object of the tree",
            "link what the build compiles, with GNU ld, gold, lld or mold",
        )
    modules = other_modules(records, binary, space.tree)
    names = [Path(name) for name in patched_names(options.patch)]
    why = why_whole(names, old, records, space.source, space.tree)
    patched = {str((space.tree / name).resolve()) for name in names}
    patch = Patch(options.patch, frozenset(name for record in records for name in record.depends))
    with reading_ahead([(item.label(space.tree), item.data) for item in touched(old, records, patched)]):
        fresh: list[Record] = []
        if why is None:
            progress("new build, what the patch touches")
            space.apply_patch(*patch)
            fresh = space.build("new")
            missing = forgotten(patched, records, fresh)
            if missing:  # then what else is made from it, by other programs, may be missing as well
                why = f"the build command does not make {place_of(missing[0], space.tree)} anew"
        if why is not None:
            progress(f"new build, all of it: {why}")
            fresh = _whole_build(space, options, "new", patch)
    require_anew(forgotten(patched, records, fresh), fresh, space.tree)
    require_copies([*records, *fresh], space.source, names)
    require_seen(patched, old, [*records, *fresh], space.source, space.tree)
    new_link = link_of(fresh, binary)
    if new_link is not None:
        require_inside(new_link, space.tree, fresh)
    new = inputs_of(new_link or old_link, space.tree, [*records, *fresh], fresh if new_link else [])
    seen_by_linker = only_linked(names, old_link, new_link or old_link, space.tree)
    for text in (*left_out(space.tree, patched, [*old, *new], records, fresh), *seen_by_linker):
        progress(text)
    after = other_modules([*records, *fresh], binary, space.tree)
    check_modules(modules, after, space.tree, verdict)
    return _pairs(space, old, new)


def _whole_build(space: Workspace, options: Options, name: str, patch: Patch | None = None) -> list[Record]:
    """Build from a fresh copy of the tree, which may hold what was built in place."""
    stale = (options.source / options.binary).exists()

    def attempt(*, archives: bool) -> list[Record]:
        space.copy_tree()
        if stale:
            space.clean(archives=archives)
        if patch is not None:
            space.apply_patch(*patch)
        return space.build(name)

    try:
        return attempt(archives=True)
    except Refusal:
        if not stale:
            raise
        return attempt(archives=False)  # some build systems never make their archives again


def _pairs(space: Workspace, old: list[Input], new: list[Input]) -> list[Pair]:
    before = {item.label(space.tree): item.data for item in old}
    after = {item.label(space.tree): item.data for item in new}
    return [Pair(label, before.get(label), after.get(label)) for label in sorted(before.keys() | after.keys())]


def _require_binary(path: Path, options: Options) -> None:
    if not path.is_file():
        raise Refusal(Reason.BINARY_NOT_BUILT, f"{options.command!r} did not make {options.binary}")
    with path.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            raise Refusal(Reason.BINARY_NOT_BUILT, f"{options.binary} is no ELF file (a libtool script?)")
