"""Write an ELF64 relocatable for x86-64 (gABI chapters 4 "Object Files"; psABI x86-64 for the relocations)."""

import struct
from dataclasses import dataclass, field

_EHDR, _SHDR, _SYM, _RELA = "<16sHHIQQQIHHHHHH", "<IIQQQQIIQQ", "<IBBHQQ", "<QQq"
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_RELA, _SHT_NOBITS = 1, 2, 3, 4, 8
_SHF_INFO_LINK = 0x40


@dataclass
class OutRelocation:
    """One relocation; symbol is the name of a symbol, or the index of an output section."""

    offset: int
    type: int
    symbol: str | int
    addend: int


@dataclass
class OutSection:
    """One output section; size is that of data unless it is empty memory (nobits)."""

    name: str
    flags: int
    align: int
    data: bytearray
    nobits: int = 0
    relocations: list[OutRelocation] = field(default_factory=list)


@dataclass
class OutSymbol:
    """One symbol; section None means undefined. kind: STT number, local or global."""

    name: str
    kind: int
    section: int | None
    value: int
    size: int
    local: bool


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._at = {"": 0}

    def add(self, text: str) -> int:
        """Return where a string lies, the same place each time."""
        if text not in self._at:
            self._at[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._at[text]


def write_object(sections: list[OutSection], symbols: list[OutSymbol]) -> bytes:
    """Return the bytes of a relocatable object; the same input gives the same bytes."""
    names, strings = _Strings(), _Strings()
    numbers = {index: index + 1 for index in range(len(sections))}
    table, index_of, first_global = _symbol_table(sections, symbols, strings, numbers)
    count = len(sections)
    relocated = [index for index in range(count) if sections[index].relocations]
    symtab = 1 + count + len(relocated)
    body, headers = bytearray(64), [struct.pack(_SHDR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]

    def put(name: str, kind: int, flags: int, data: bytes, *tail: int, size: int | None = None) -> None:
        link, info, align, entry = tail
        body.extend(bytes(-len(body) % max(align, 1)))
        at = len(body)
        body.extend(data)
        length = len(data) if size is None else size
        headers.append(struct.pack(_SHDR, names.add(name), kind, flags, 0, at, length, link, info, align, entry))

    for item in sections:
        if item.nobits:
            put(item.name, _SHT_NOBITS, item.flags, b"", 0, 0, item.align, 0, size=item.nobits)
        else:
            put(item.name, _SHT_PROGBITS, item.flags, bytes(item.data), 0, 0, item.align, 0)
    for index in relocated:
        rows = b"".join(
            struct.pack(_RELA, r.offset, index_of[r.symbol] << 32 | r.type, r.addend)
            for r in sorted(sections[index].relocations, key=lambda r: r.offset)
        )
        name = f".rela{sections[index].name}"
        put(name, _SHT_RELA, _SHF_INFO_LINK, rows, symtab, numbers[index], 8, 24)
    put(".symtab", _SHT_SYMTAB, 0, table, symtab + 1, first_global, 8, 24)
    put(".strtab", _SHT_STRTAB, 0, bytes(strings.data), 0, 0, 1, 0)
    names.add(".shstrtab")
    put(".shstrtab", _SHT_STRTAB, 0, bytes(names.data), 0, 0, 1, 0)
    body.extend(bytes(-len(body) % 8))
    start = len(body)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    body[:64] = struct.pack(_EHDR, ident, 1, 62, 1, 0, 0, start, 0, 64, 0, 0, 64, len(headers), len(headers) - 1)
    return bytes(body) + b"".join(headers)


def _symbol_table(
    sections: list[OutSection], symbols: list[OutSymbol], strings: _Strings, numbers: dict[int, int]
) -> tuple[bytes, dict[str | int, int], int]:
    """Return the table, symbol or section -> index, and the index of the first global symbol."""
    rows = [struct.pack(_SYM, 0, 0, 0, 0, 0, 0)]
    index_of: dict[str | int, int] = {}
    for index in range(len(sections)):
        index_of[index] = len(rows)
        rows.append(struct.pack(_SYM, 0, 3, 0, numbers[index], 0, 0))  # STT_SECTION, local
    ordered = sorted(symbols, key=lambda s: (not s.local, s.section is None, s.name))
    first_global = len(rows) + sum(s.local for s in symbols)
    for item in ordered:
        index_of[item.name] = len(rows)
        info = (0 if item.local else 1) << 4 | item.kind
        section = 0 if item.section is None else numbers[item.section]
        rows.append(struct.pack(_SYM, strings.add(item.name), info, 0, section, item.value, item.size))
    return b"".join(rows), index_of, first_global
