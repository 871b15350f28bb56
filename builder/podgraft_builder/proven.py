"""Each changed object is proven to be what runs, function by function; inline functions have copies in several."""

from podgraft_builder.compare import Comparison
from podgraft_builder.match import Proof
from podgraft_builder.objects import Function
from podgraft_builder.options import Progress
from podgraft_builder.running import RunningBinary
from podgraft_builder.tables import check_tables
from podgraft_bundle.errors import Reason, Refusal


def prove_objects(comparisons: dict[str, Comparison], running: RunningBinary, progress: Progress) -> dict[str, Proof]:
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


def merge_copies(comparisons: dict[str, Comparison], proofs: dict[str, Proof]) -> None:
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
