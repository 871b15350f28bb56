"""From a source tree and a patch to a bundle: build twice, compare, prove, assemble."""

import hashlib
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from podgraft_builder.ahead import reading_ahead, touched
from podgraft_builder.assemble import Assembly
from podgraft_builder.callers import removed_functions
from podgraft_builder.compare import Comparison
from podgraft_builder.demoted import share_demoted
from podgraft_builder.explain import Explanation, explain
from podgraft_builder.grounds import grounds_of
from podgraft_builder.hazards import check_hazards
from podgraft_builder.hooks import HookFunction, find_hooks
from podgraft_builder.identify import identify
from podgraft_builder.lost import check_lost_names
from podgraft_builder.match import Proof
from podgraft_builder.modules import check_modules, other_modules
from podgraft_builder.objects import Function
from podgraft_builder.pairs import Pair, compare_pairs, lost_objects, old_objects, unchanged_objects
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
from podgraft_builder.references import References
from podgraft_builder.running import RunningBinary
from podgraft_builder.stale import require_copies
from podgraft_builder.tables import check_tables
from podgraft_builder.verdict import Verdict
from podgraft_builder.workspace import Workspace, patched_names
from podgraft_bundle.bundle import Bundle, write_bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import Hook, Manifest, Module, ObjectFile, Range, ReplacedFunction, version_for


class Patch(NamedTuple):
    """A patch, and what the compilers read in the old build."""

    file: Path
    read: frozenset[str]


Progress = Callable[[str], None]
Show = Callable[[Explanation], None]


@dataclass(frozen=True)
class Options:
    """What the user asks for; binary is relative to source."""

    source: Path
    patch: Path
    command: str
    binary: Path
    output: Path
    running: Path | None = None
    name: str | None = None
    version: str = "1"
    cves: tuple[str, ...] = ()
    allow: frozenset[Reason] = frozenset()
    replaces: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    hook_limit: float = 5.0


@dataclass
class Outcome:
    """What was built: the bundle, the binary it is for and how that was chosen, and why it is as it is."""

    bundle: Bundle
    running: Path
    chosen: str
    explanation: Explanation


def build(options: Options, progress: Progress, show: Show = lambda _: None) -> Outcome:
    """Build a bundle. Raises Refusal with the reason of the first thing that cannot be patched safely.

    show gets the explanation as soon as the builds could be compared, also where they are refused afterwards.
    """
    if not (options.source.is_dir() and options.patch.is_file()):
        missing = options.patch if options.source.is_dir() else options.source
        raise Refusal(Reason.PATCH_DOES_NOT_APPLY, f"{missing} is not there", "check --source and --patch")
    space = Workspace.create(options.source, options.command)
    try:
        return _build_in(space, options, progress, show)
    finally:
        space.remove()


def _build_in(space: Workspace, options: Options, progress: Progress, show: Show) -> Outcome:
    space.try_patch(options.patch)  # one that does not apply must not cost two builds
    path, chosen = _running_binary(space, options, progress)
    running = RunningBinary(path)
    progress(f"running binary: {path} ({chosen}), build id {running.build_id}")
    verdict = Verdict(options.allow)
    pairs = _two_builds(space, options, progress, verdict)
    with space.sparing():
        comparisons = compare_pairs(pairs)
        try:
            if running.partial:
                progress(identify(running, old_objects(pairs)))
            else:
                share_demoted(running, comparisons.values(), pairs)
            unchanged = cache(lambda: unchanged_objects(pairs))
            subjects = check_hazards(comparisons, unchanged, running, verdict)
            check_lost_names(comparisons, lost_objects(pairs), unchanged, verdict)
            hooks = find_hooks(comparisons, verdict)
            verdict.settle()
            _require_change(comparisons)
            bundle = _bundle(comparisons, hooks, running, verdict, options, progress)
        except Refusal as refusal:
            show(Explanation(explain(comparisons, verdict, options.patch), tuple(verdict.hazards), refusal))
            raise
        rows = explain(comparisons, verdict, options.patch)
        explanation = Explanation(rows, tuple(verdict.hazards), grounds=tuple(grounds_of(subjects)))
        show(explanation)
    return Outcome(bundle, path, chosen, explanation)


def _bundle(  # noqa: PLR0917 (all that was found)
    comparisons: dict[str, Comparison],
    hooks: list[HookFunction],
    running: RunningBinary,
    verdict: Verdict,
    options: Options,
    progress: Progress,
) -> Bundle:
    """Prove that the running binary is what was built, and write the bundle."""
    proofs = _prove(comparisons, running, progress)
    _merge_copies(comparisons, proofs)
    assembly = Assembly(comparisons, References(running, proofs), hooks)
    data = assembly.run()
    references = sorted(assembly.references.made.values(), key=lambda r: r.symbol)
    calls = [Hook(kind=h.kind, symbol=assembly.symbol_of(h.label, h.function), limit=options.hook_limit) for h in hooks]
    manifest = Manifest(
        name=options.name or _default_name(options.patch),
        version=options.version,
        cves=sorted(set(options.cves)),
        module=Module(name=options.binary.name, build_id=running.build_id),
        functions=_functions(assembly, proofs, running),
        replaces=list(options.replaces),
        over=list(options.over),
        points=_points(comparisons, options),
        gone=_gone(comparisons, proofs, running),
        overruled=verdict.overruled,
        references=references,
        hooks=calls,
        format_version=version_for(calls, references),
        object=ObjectFile(size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    )
    return write_bundle(manifest, data, options.output)


def _points(comparisons: dict[str, Comparison], options: Options) -> list[str]:
    """Return the declared points; who calls a function that is replaced is not quiescent there."""
    replaced = {name for comparison in comparisons.values() for name in comparison.changed}
    for name in options.points:
        if name in replaced:
            raise Refusal(
                Reason.NO_PATCH_SITE,
                f"{name} is declared a point of quiescence and is itself replaced",
                "name a function that is called where the thread may change over and that the patch leaves alone",
            )
    return list(options.points)


def _running_binary(space: Workspace, options: Options, progress: Progress) -> tuple[Path, str]:
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


def _two_builds(space: Workspace, options: Options, progress: Progress, verdict: Verdict) -> list[Pair]:
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


def _require_change(comparisons: dict[str, Comparison]) -> None:
    if not any(comparison.changed for comparison in comparisons.values()):
        raise Refusal(Reason.NO_CHANGE, "no function of the binary has other machine code after the patch")


def _prove(comparisons: dict[str, Comparison], running: RunningBinary, progress: Progress) -> dict[str, Proof]:
    """Prove every function of each changed object: one that inlines differently would show here."""
    proofs = {}
    dropped: dict[str, list[tuple[Comparison, Refusal]]] = {}
    for label, comparison in sorted(comparisons.items()):
        proof = Proof(comparison.old, running)
        if comparison.changed or comparison.new_functions:
            for name, refusal in _prove_object(comparison, proof).items():
                dropped.setdefault(name, []).append((comparison, refusal))
            progress(f"{label}: {len(proof.functions)} functions equal those of the running binary")
        proofs[label] = proof
    _drop_copies(comparisons, dropped)
    return proofs


def _prove_object(comparison: Comparison, proof: Proof) -> dict[str, Refusal]:
    """Prove the functions of an object; return the changed weak ones of which another object's copy runs."""
    other_copies = {}
    for unit in comparison.changed.values():
        if unit.old.weak:
            trial = proof.copy()
            try:
                for function in (unit.old, *unit.old_parts):
                    trial.prove(function)
                check_tables(trial)
            except Refusal as refusal:
                other_copies[unit.name] = refusal
            else:
                proof.adopt(trial)
    replaced = {f for c in comparison.changed.values() if c.name not in other_copies for f in (c.old, *c.old_parts)}
    for function in dict.fromkeys(comparison.old.functions.values()):
        # Where names are missing, a function without one may be there all the same, and be another.
        known = proof.running.partial or function.name in proof.running.by_name
        if function in replaced or (known and not _is_weak(comparison, function)):
            proof.prove(function)
    proof.finish()
    check_tables(proof)
    return other_copies


def _is_weak(comparison: Comparison, function: Function) -> bool:
    """Say whether the linker may have taken another object's copy; cold parts go with their functions."""
    parent = comparison.old.functions.get(comparison.old.parent_of(function), function)
    return parent.weak


def _drop_copies(comparisons: dict[str, Comparison], dropped: dict[str, list[tuple[Comparison, Refusal]]]) -> None:
    """Leave out copies of inline functions that the linker dropped. Raises Refusal where none is the one that runs."""
    for name, copies in sorted(dropped.items()):
        for comparison, _ in copies:
            del comparison.changed[name]
        if not any(name in comparison.changed for comparison in comparisons.values()):
            raise copies[0][1]


def _merge_copies(comparisons: dict[str, Comparison], proofs: dict[str, Proof]) -> None:
    """Several objects may hold one inline function; it is replaced once. Raises Refusal where the copies differ."""
    seen: dict[int, tuple[Comparison, str]] = {}
    for label, comparison in sorted(comparisons.items()):
        for name, unit in sorted(comparison.changed.items()):
            first, other = seen.setdefault(proofs[label].prove(unit.old).address, (comparison, name))
            if first is comparison:
                continue
            if first.new.body(first.changed[other].new) != comparison.new.body(unit.new):
                raise Refusal(
                    Reason.UNSUPPORTED_CHANGE, f"{name} differs between {first.new.label} and {comparison.new.label}"
                )
            del comparison.changed[name]


def _functions(assembly: Assembly, proofs: dict[str, Proof], running: RunningBinary) -> list[ReplacedFunction]:
    found = []
    for label, comparison in sorted(assembly.comparisons.items()):
        for _, unit in sorted(comparison.changed.items()):
            found.append(
                ReplacedFunction(
                    entry=_range(proofs[label], unit.old, running),
                    parts=[_range(proofs[label], part, running) for part in unit.old_parts],
                    new_symbol=assembly.symbol_of(label, unit.new),
                )
            )
    return found


def _gone(comparisons: dict[str, Comparison], proofs: dict[str, Proof], running: RunningBinary) -> list[Range]:
    """Return the old functions that nothing replaces and that only replaced ones, or each other, can lead to."""
    return [
        _range(proofs[label], function, running)
        for label, comparison in sorted(comparisons.items())
        for function in (removed_functions(comparison) if comparison.changed else [])
        if function.name in running.by_name
    ]


def _range(proof: Proof, function: Function, running: RunningBinary) -> Range:
    named = proof.prove(function)
    data = running.read(named.address, named.size)
    if data is None:
        raise Refusal(Reason.RUNNING_BINARY_DIFFERS, f"{function.name} has no bytes in {running.path}")
    digest = hashlib.sha256(data).hexdigest()
    return Range(symbol=function.name, offset=named.address, size=named.size, sha256=digest)


def _default_name(patch: Path) -> str:
    name = re.sub(r"[^a-z0-9.-]+", "-", patch.stem.lower()).strip(".-")[:100].strip(".-")
    return name or "patch"
