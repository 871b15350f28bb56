"""From a source tree and a patch to a bundle: build twice, compare, prove, assemble."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
from podgraft_builder.objects import Function
from podgraft_builder.options import Options, Progress
from podgraft_builder.pairs import compare_pairs, lost_objects, old_objects, unchanged_objects
from podgraft_builder.proven import merge_copies, prove_objects
from podgraft_builder.references import References
from podgraft_builder.running import RunningBinary
from podgraft_builder.twice import running_binary, two_builds
from podgraft_builder.verdict import Verdict
from podgraft_builder.workspace import Workspace
from podgraft_bundle.bundle import Bundle, write_bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import Hook, Manifest, Module, ObjectFile, Range, ReplacedFunction, version_for

Show = Callable[[Explanation], None]


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
    path, chosen = running_binary(space, options, progress)
    running = RunningBinary(path)
    progress(f"running binary: {path} ({chosen}), build id {running.build_id}")
    verdict = Verdict(options.allow)
    pairs = two_builds(space, options, progress, verdict)
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
    proofs = prove_objects(comparisons, running, progress)
    merge_copies(comparisons, proofs)
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


def _require_change(comparisons: dict[str, Comparison]) -> None:
    if not any(comparison.changed for comparison in comparisons.values()):
        raise Refusal(Reason.NO_CHANGE, "no function of the binary has other machine code after the patch")


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
