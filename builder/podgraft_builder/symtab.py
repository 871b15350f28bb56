"""Symbol tables read as a whole: pyelftools parses one entry at a time, in tens of microseconds each."""

import struct
from typing import NamedTuple

from elftools.elf.enums import ENUM_ST_INFO_BIND, ENUM_ST_INFO_TYPE, ENUM_ST_SHNDX, ENUM_ST_VISIBILITY
from elftools.elf.sections import SymbolTableSection

_ENTRY = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size
_KINDS = {number: name for name, number in ENUM_ST_INFO_TYPE.items()}
_BINDS = {number: name for name, number in ENUM_ST_INFO_BIND.items()}
_SPECIAL = {number: name for name, number in ENUM_ST_SHNDX.items()}
_VISIBILITIES = {number: name for name, number in ENUM_ST_VISIBILITY.items()}


class Symbol(NamedTuple):
    """A symbol in the words of pyelftools; section is None when it is undefined, absolute or common: see special."""

    name: str
    kind: str
    bind: str
    visibility: str
    section: int | None
    special: str
    value: int
    size: int

    @property
    def local(self) -> bool:
        """Say whether the name is known inside its file only."""
        return self.bind == "STB_LOCAL"


def read_symbols(table: SymbolTableSection) -> list[Symbol]:
    """Return all symbols of a table in its order, the empty first one included."""
    names = table.stringtable.data()
    found = []
    for start, info, other, section, value, size in _ENTRY.iter_unpack(table.data()):
        name = names[start : max(names.find(0, start), start)].decode(errors="replace")
        kind, bind = _KINDS.get(info & 15, str(info & 15)), _BINDS.get(info >> 4, str(info >> 4))
        special = _SPECIAL.get(section, "")
        visibility = _VISIBILITIES[other & 3]
        found.append(Symbol(name, kind, bind, visibility, None if special else section, special, value, size))
    return found
