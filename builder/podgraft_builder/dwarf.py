"""What debug information says about types and signatures (DWARF 5, sections 3.3, 5.7 and 5.8)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from elftools.dwarf.die import DIE

from podgraft_builder.debuginfo import KEPT, SectionOffset
from podgraft_builder.objects import ObjectFile

_ASSEMBLER = 0x8001  # DW_LANG_Mips_Assembler, what GNU as writes
_CPP = frozenset({0x04, 0x1A, 0x21, 0x2B, 0x3A, 0x3B})  # DW_LANG_C_plus_plus and its years (DWARF 5, 7.12)
_STATIC = (0x03, 0x0E)  # DW_OP_addr, DW_OP_const8u: at an address, or thread-local
_RECORDS = {
    "DW_TAG_structure_type": "struct",
    "DW_TAG_class_type": "class",
    "DW_TAG_union_type": "union",
    "DW_TAG_enumeration_type": "enum",
}
NAMELESS = "enum without a name"  # all of one scope together
_QUALIFIERS = {"DW_TAG_const_type", "DW_TAG_volatile_type", "DW_TAG_restrict_type", "DW_TAG_atomic_type"}
_POINTERS = {"DW_TAG_pointer_type", "DW_TAG_reference_type", "DW_TAG_rvalue_reference_type"}
_DEEP = 24


@dataclass(frozen=True)
class Layout:
    """Size in bytes, and (name, offset or value, type) of each member or enumerator; bit fields in bits."""

    kind: str
    size: int
    members: tuple[tuple[str, int, str], ...]

    def differs(self, new: "Layout") -> str | None:
        """Say how a new layout differs in memory; names alone do not count, nor do further enumerators."""
        if self.size != new.size:
            return f"size {self.size} -> {new.size}"
        if self.kind == "enum":
            moved = [name for name, value in self._moved(new)]
            return f"value of {moved[0]} changes" if moved else None
        if self.kind == NAMELESS:  # a lone constant, such as a limit, may change; a value must not change its meaning
            taken = {value: name for name, value, _ in new.members}
            moved = [name for name, value in self._moved(new) if value in taken]
            return f"value of {moved[0]} changes" if moved else None
        places = {name: place for name, *place in new.members if name}
        moved = [n for n, *place in self.members if n and places.get(n, place) != place]
        if moved:
            return f"{moved[0]} moves or changes its type"
        if [m[1:] for m in self.members] != [m[1:] for m in new.members]:
            pairs = zip(self.members, new.members, strict=False)
            first = next((f"{a[0]} ({a[2]}) -> {b[0]} ({b[2]})" for a, b in pairs if a[1:] != b[1:]), None)
            return first or f"{len(self.members)} members -> {len(new.members)}"
        return None

    def _moved(self, new: "Layout") -> list[tuple[str, int]]:
        """Return the enumerators, with their values, that have another value now."""
        values: dict[str, set[int]] = {}
        for name, value, _ in new.members:
            values.setdefault(name, set()).add(value)
        return [(name, value) for name, value, _ in self.members if name in values and value not in values[name]]


@dataclass
class Debug:
    """Types by name ("struct client"), signatures by function, types of variables ("count", "function::count").

    noreturn: functions that are declared so. nested: those inside of functions (GNU C, Fortran).
    producers: compilers with their flags. cpp, assembler: languages seen.
    """

    layouts: dict[str, Layout] = field(default_factory=dict)
    signatures: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    noreturn: set[str] = field(default_factory=set)
    nested: set[str] = field(default_factory=set)
    producers: set[str] = field(default_factory=set)
    cpp: bool = False
    assembler: bool = False
    present: bool = False
    _read: dict[int, Layout] = field(default_factory=dict)

    def note(self, name: str, die: DIE) -> None:
        """Note the layout of a type, read once: most have a name and a typedef. Files joined by ld -r share names."""
        if die.offset not in self._read:
            self._read[die.offset] = layout_of(die)
        while self.layouts.setdefault(name, self._read[die.offset]) != self._read[die.offset]:
            name += ", again"


class Static(NamedTuple):
    """A static variable inside a function: "function::variable", and the line of its declaration."""

    owner: str
    line: int


NOBODYS = Static("", 0)


@lru_cache(maxsize=KEPT)
def read_debug(which: ObjectFile) -> Debug:
    """Read the types, signatures and static variables of an object, also those inside functions."""
    debug = Debug(present=bool(which.debug.units))
    for unit in which.debug.units:
        top = unit.get_top_DIE()
        language = top.attributes.get("DW_AT_language")
        if language is not None and language.value == _ASSEMBLER:
            debug.assembler = True
            continue
        debug.producers.add(name_of(top, "DW_AT_producer"))
        debug.cpp = debug.cpp or (language is not None and language.value in _CPP)
        _walk(top, "", debug)
    return debug


def _walk(parent: DIE, scope: str, debug: Debug) -> None:
    for die in parent.iter_children():
        name = name_of(die)
        _note_type(die, scope, debug)
        if (die.tag in _RECORDS and name) or die.tag == "DW_TAG_namespace":
            _walk(die, f"{scope}{name}::", debug)
        elif die.tag == "DW_TAG_subprogram" and name:
            _function(die, name, debug)
        elif die.tag == "DW_TAG_subprogram" and "DW_AT_specification" in die.attributes:  # of a class or a namespace
            _inside(die, linkage_of(declaration_of(die)), debug)
        elif die.tag == "DW_TAG_variable" and name and _is_static(die):
            debug.variables[name_of(die, "DW_AT_linkage_name") or f"{scope}{name}"] = _type(_target(die), 0)


def _note_type(die: DIE, scope: str, debug: Debug) -> None:
    """Note the layout of what a scope declares: records by name or by typedef, enumerations also without one."""
    name = name_of(die)
    if die.tag in _RECORDS and "DW_AT_declaration" not in die.attributes:
        if name:
            debug.note(f"{_RECORDS[str(die.tag)]} {scope}{name}", die)
        elif die.tag == "DW_TAG_enumeration_type":
            key = f"{NAMELESS} {scope}".rstrip()
            known = debug.layouts.get(key, Layout(NAMELESS, 0, ()))
            debug.layouts[key] = Layout(NAMELESS, 0, known.members + layout_of(die).members)
    elif die.tag == "DW_TAG_typedef" and name:
        target = _pointed_at(die)
        if target is not None and target.tag in _RECORDS and "DW_AT_declaration" not in target.attributes:
            debug.note(f"typedef {scope}{name}", target)


def _pointed_at(die: DIE) -> DIE | None:
    """Return what a typedef is of, or of pointers to, or of arrays of."""
    target = _target(die)
    while target is not None and target.tag in {*_POINTERS, *_QUALIFIERS, "DW_TAG_array_type"}:
        target = _target(target)
    return target


def _function(die: DIE, name: str, debug: Debug) -> None:
    linked = name_of(die, "DW_AT_linkage_name") or name
    debug.signatures.setdefault(linked, _signature(die))
    if "DW_AT_noreturn" in die.attributes:
        debug.noreturn.add(linked)
    _inside(die, name, debug)


def _inside(parent: DIE, owner: str, debug: Debug) -> None:
    """Note types that a function declares, and those of its static variables; those of one name are told together."""
    for die in parent.iter_children():
        _note_type(die, f"{owner}::", debug)
        if die.tag == "DW_TAG_variable" and name_of(die) and _is_static(die):
            key, text = f"{owner}::{name_of(die)}", _type(_target(die), 0)
            known = debug.variables.get(key)
            debug.variables[key] = text if known is None else f"{known}, {text}"
        elif die.tag == "DW_TAG_lexical_block":
            _inside(die, owner, debug)
        elif die.tag == "DW_TAG_subprogram" and name_of(die) and "DW_AT_declaration" not in die.attributes:
            if "DW_AT_artificial" in die.attributes:  # outlined by GCC, as for OpenMP
                _function(die, name_of(die), debug)
            else:
                debug.nested.add(name_of(die))
                _inside(die, name_of(die), debug)


def _is_static(die: DIE) -> bool:
    location: Any = die.attributes.get("DW_AT_location")
    return (
        location is not None and isinstance(location.value, list) and location.value[:1] in ([_STATIC[0]], [_STATIC[1]])
    )


def layout_of(die: DIE) -> Layout:
    """Return the layout of a record or enumeration."""
    members: list[tuple[str, int, str]] = []
    for child in die.iter_children():
        if child.tag == "DW_TAG_enumerator":
            members.append((name_of(child), int(child.attributes["DW_AT_const_value"].value), ""))
        elif child.tag in {"DW_TAG_member", "DW_TAG_inheritance"}:
            width = f":{number_of(child, 'DW_AT_bit_size')}" if "DW_AT_bit_size" in child.attributes else ""
            members.append((name_of(child), _bits(child), _type(_target(child), 0) + width))
    return Layout(_RECORDS[str(die.tag)], number_of(die, "DW_AT_byte_size"), tuple(members))


def _bits(member: DIE) -> int:
    """Return where a member starts, in bits."""
    if "DW_AT_data_bit_offset" in member.attributes:
        return number_of(member, "DW_AT_data_bit_offset")
    start = 8 * number_of(member, "DW_AT_data_member_location")
    if "DW_AT_bit_offset" in member.attributes:
        # From the most significant bit of the unit that holds it (DWARF 3, 5.5.6).
        unit = 8 * (number_of(member, "DW_AT_byte_size") or number_of(_target(member) or member, "DW_AT_byte_size"))
        return start + unit - number_of(member, "DW_AT_bit_offset") - number_of(member, "DW_AT_bit_size")
    return start


def _signature(die: DIE) -> str:
    parameters = [
        "..." if child.tag == "DW_TAG_unspecified_parameters" else _type(_target(child), 0)
        for child in die.iter_children()
        if child.tag in {"DW_TAG_formal_parameter", "DW_TAG_unspecified_parameters"}
    ]
    return f"{_type(_target(die), 0)} ({', '.join(parameters)})"


def _type(die: DIE | None, depth: int) -> str:  # noqa: PLR0911 (a table of kinds)
    """Return a type's text without qualifiers; a named record by its name, a nameless one by its layout."""
    if die is None or depth > _DEEP:
        return "void"
    if die.tag in _QUALIFIERS:
        return _type(_target(die), depth + 1)
    if die.tag in _POINTERS:
        return _type(_target(die), depth + 1) + "*"
    if die.tag == "DW_TAG_array_type":
        return _type(_target(die), depth + 1) + "".join(_dimensions(die))
    if die.tag == "DW_TAG_subroutine_type":
        return _signature(die)
    if die.tag in _RECORDS:
        name = name_of(die)
        return f"{_RECORDS[str(die.tag)]} {name}" if name else str(layout_of(die).members)
    if die.tag == "DW_TAG_typedef":
        target = _target(die)
        nameless = target is not None and target.tag in _RECORDS and not name_of(target)
        return name_of(die) if nameless else _type(target, depth + 1)
    return name_of(die) or str(die.tag)


def _dimensions(die: DIE) -> Iterator[str]:
    for child in die.iter_children():
        if child.tag == "DW_TAG_subrange_type":
            bound = child.attributes.get("DW_AT_upper_bound")
            count = child.attributes.get("DW_AT_count")
            yield f"[{bound.value + 1 if bound is not None else count.value if count is not None else ''}]"


def _target(die: DIE) -> DIE | None:
    return die.get_DIE_from_attribute("DW_AT_type") if "DW_AT_type" in die.attributes else None


def name_of(die: DIE, attribute: str = "DW_AT_name") -> str:
    """Return an attribute that is text, empty where it is missing."""
    name: Any = die.attributes.get(attribute)
    return name.value.decode(errors="replace") if name is not None else ""


def declaration_of(die: DIE) -> DIE:
    """Follow an instance to the function that it is an instance of, and a definition to what names it."""
    for attribute in ("DW_AT_abstract_origin", "DW_AT_specification"):
        if attribute in die.attributes:
            return declaration_of(die.get_DIE_from_attribute(attribute))
    return die


def linkage_of(die: DIE) -> str:
    """Return the name that the linker sees."""
    name: Any = die.attributes.get("DW_AT_linkage_name") or die.attributes.get("DW_AT_name")
    return name.value.decode(errors="replace") if name is not None else ""


def number_of(die: DIE, attribute: str) -> int:
    """Return an attribute that is a number, 0 where it is missing."""
    found: Any = die.attributes.get(attribute)
    return found.value if found is not None and isinstance(found.value, int) else 0


@lru_cache(maxsize=KEPT)
def read_statics(which: ObjectFile) -> dict[SectionOffset, Static]:
    """Return where the static variables inside functions lie, and whose they are.

    Inlining puts statics of one name into one function; the debug information knows whose they are.
    """
    return {
        place: Static(f"{name_of(function)}::{name_of(die)}", number_of(die, "DW_AT_decl_line"))
        for unit in which.debug.units
        for function in unit.get_top_DIE().iter_children()
        if function.tag == "DW_TAG_subprogram" and name_of(function)
        for place, die in _statics(function, which.debug.places)
    }


def _statics(parent: DIE, places: dict[int, SectionOffset]) -> Iterator[tuple[SectionOffset, DIE]]:
    for die in parent.iter_children():
        if die.tag == "DW_TAG_variable" and "DW_AT_location" in die.attributes:
            # DW_FORM_exprloc: a length of one byte, DW_OP_addr, then the address that is relocated
            place = places.get(die.attributes["DW_AT_location"].offset + 2)
            if place is not None and name_of(die):
                yield place, die
        elif die.has_children:
            yield from _statics(die, places)
