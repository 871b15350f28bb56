"""Learn from pointers in data where functions and variables are: tables lead to what no code names."""

from podgraft_builder import reloc
from podgraft_builder.match import Proof
from podgraft_builder.objects import SHF_TLS, WEAK, ObjectFile, Place, Relocation, place_of
from podgraft_builder.running import RELATIVE


def has_pointers(which: ObjectFile, index: int) -> bool:
    """Say whether a section holds data with pointers of which this object's copy is the one that runs."""
    section, variables = which.sections[index], which.variables.get(index, [])
    if section.executable or section.flags & SHF_TLS or any(v.bind in WEAK for v in variables):
        return False
    return bool(variables) and any(item.type == reloc.R_64 for item in section.relocations)


def follow_pointers(proof: Proof, index: int) -> None:
    """Learn from each pointer in a section of data where the thing is that it was built to lead to. Raises Mismatch."""
    for item in proof.object.sections[index].relocations:
        name, kind, value = proof.running.pointer(proof.sections[index] + item.offset)
        place = place_of(item, 0)
        if item.type == reloc.R_64 and kind == RELATIVE and not name and _is_sure(proof.object, item, place):
            proof.learn(item, place, value, [])


def _is_sure(which: ObjectFile, item: Relocation, place: Place) -> bool:
    """Say whether a pointer leads to the start of a function or to a variable that no other object can define."""
    if place.section is None:
        return item.symbol.special != "SHN_ABS" and item.symbol.bind not in WEAK
    function, variable = which.function_at(place.section, place.offset), which.variable_at(place)
    if function is not None:
        return not function.weak and place.offset == function.start
    return variable is not None and variable.bind not in WEAK
