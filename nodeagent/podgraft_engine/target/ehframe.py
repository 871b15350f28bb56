# SPDX-License-Identifier: GPL-2.0-only
"""Unwind information: where functions begin and end, and how to find the caller (psABI x86-64 4.2.4, DWARF 5 6.4).

A table is parsed entry by entry when it is asked for, and each row is kept: a held thread must not wait for a parser.
"""

import bisect
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from elftools.common.exceptions import DWARFError, ELFParseError
from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile

RETURN_ADDRESS: Final = 16
RBP: Final = 6
RSP: Final = 7
_TABLE_DATAREL_SDATA4: Final = 0x3B
_FOUR_BYTES: Final = (0x3, 0xB)  # udata4, sdata4
_LENGTH_IN_64_BITS: Final = 2**32 - 1
_PARSE_ERRORS: Final = (DWARFError, ELFParseError, KeyError, IndexError, ValueError, TypeError, AttributeError)


@dataclass(frozen=True)
class Row:
    """How to find the caller from one pc: CFA = register + offset; saved: register -> offset from the CFA.

    outermost: there is no caller. known is False where the rules are beyond this unwinder (expressions).
    """

    known: bool
    outermost: bool = False
    cfa_register: int = RSP
    cfa_offset: int = 0
    saved: tuple[tuple[int, int], ...] = ()


UNKNOWN: Final = Row(known=False)


class EhFrame:
    """The .eh_frame of one file; addresses are link-time."""

    def __init__(self, data: bytes, address: int, starts: list[tuple[int, int]] | None) -> None:
        structs = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)
        self._data = data
        self._encodings: dict[int, int] = {}
        self._info = CallFrameInfo(BytesIO(data), len(data), address, structs, for_eh_frame=True)
        if starts is None:
            starts = [(e["initial_location"], e.offset) for e in self._info.get_entries() if isinstance(e, FDE)]
        self._table = sorted(starts)
        self._starts = [start for start, _ in self._table]
        self._entries: dict[int, Any] = {}
        self._rows: dict[int, tuple[list[int], list[Row]]] = {}

    @classmethod
    def of_elf(cls, elf: ELFFile) -> "EhFrame | None":
        """Read .eh_frame through the sorted table of .eh_frame_hdr; None when the file has none."""
        frame, header = elf.get_section_by_name(".eh_frame"), elf.get_section_by_name(".eh_frame_hdr")
        if frame is None:
            return None
        starts = _header_table(header.data(), header["sh_addr"], frame["sh_addr"]) if header else None
        return cls(frame.data(), frame["sh_addr"], starts)

    def range_of(self, pc: int) -> tuple[int, int] | None:
        """Return start and end of the code that an entry describes, None when no entry covers pc."""
        index = bisect.bisect_right(self._starts, pc) - 1
        found = self._range_at(index) if index >= 0 else None
        return found if found is not None and pc < found[1] else None

    def ranges_between(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return the ranges that begin in [low, high), and the one before, in order."""
        first = max(bisect.bisect_left(self._starts, low) - 1, 0)
        last = bisect.bisect_left(self._starts, high)
        found = [self._range_at(index) for index in range(first, last)]
        return [r for r in found if r is not None]

    def entries(self) -> list[tuple[int, int, int]]:
        """Return start and end of each described piece of code, and where in the table its entry is."""
        ranges = [(self._range_at(index), offset) for index, (_, offset) in enumerate(self._table)]
        return [(*found, offset) for found, offset in ranges if found is not None]

    def row(self, pc: int, *, parse: bool = True) -> Row | None:
        """Return the unwind row for a pc; without `parse` only if its function was parsed before, else None."""
        index = bisect.bisect_right(self._starts, pc) - 1
        if index < 0:
            return UNKNOWN
        offset = self._table[index][1]
        if offset not in self._rows:
            if not parse:
                return None
            self._rows[offset] = self._decode(pc)
        starts, rows = self._rows[offset]
        return rows[bisect.bisect_right(starts, pc)]

    def _range_at(self, index: int) -> tuple[int, int] | None:
        """Return the range of one entry; its size is read in place, for a whole parse takes some 100 us."""
        start, offset = self._table[index]
        length, back = struct.unpack_from("<II", self._data, offset) if offset + 16 <= len(self._data) else (0, 0)
        encoding = self._encodings.get(offset + 4 - back) if length not in (0, _LENGTH_IN_64_BITS) else None
        if encoding is not None and encoding & 0xF in _FOUR_BYTES:
            size = struct.unpack_from("<I", self._data, offset + 12)[0]
            return (start, start + size) if size else None
        entry = self._entry(start)
        if entry is None:
            return None
        self._encodings[entry.cie.offset] = entry.cie.augmentation_dict.get("FDE_encoding", 0)
        return entry["initial_location"], entry["initial_location"] + entry["address_range"]

    def _entry(self, pc: int) -> Any:
        index = bisect.bisect_right(self._starts, pc) - 1
        if index < 0:
            return None
        offset = self._table[index][1]
        if offset not in self._entries:
            try:
                # pyelftools parses a section as a whole (seconds for a large program) or, by this, one entry.
                self._entries[offset] = self._info._parse_entry_at(offset)  # noqa: SLF001
            except _PARSE_ERRORS:
                self._entries[offset] = None
        entry = self._entries[offset]
        if entry is None or not entry["initial_location"] <= pc < entry["initial_location"] + entry["address_range"]:
            return None
        return entry

    def _decode(self, pc: int) -> tuple[list[int], list[Row]]:
        """Return the starts of the rows of the function around pc, and one row more: what holds before and after."""
        entry = self._entry(pc)
        if entry is None or b"S" in entry.cie["augmentation"]:
            return [], [UNKNOWN]
        try:
            table = entry.get_decoded().table
            end = entry["initial_location"] + entry["address_range"]
            return [*(line["pc"] for line in table), end], [UNKNOWN, *map(_row_of, table), UNKNOWN]
        except _PARSE_ERRORS:
            return [], [UNKNOWN]


def _row_of(line: dict[Any, Any]) -> Row:
    cfa = line["cfa"]
    if cfa.expr is not None:
        return UNKNOWN
    saved = []
    for register, rule in line.items():
        if register in ("pc", "cfa"):
            continue
        if rule.type == "UNDEFINED" and register == RETURN_ADDRESS:
            return Row(known=True, outermost=True)
        if rule.type == "OFFSET":
            saved.append((register, rule.arg))
        elif rule.type not in ("SAME_VALUE", "UNDEFINED"):
            return UNKNOWN
    return Row(known=True, cfa_register=cfa.reg, cfa_offset=cfa.offset, saved=tuple(saved))


def _header_table(data: bytes, header_address: int, frame_address: int) -> list[tuple[int, int]] | None:
    """Return (function, offset of its entry in .eh_frame) from .eh_frame_hdr (LSB core, section 10.6.2)."""
    if len(data) < 12 or data[0] != 1 or data[3] != _TABLE_DATAREL_SDATA4 or data[1] & 0xF not in (0xB, 0x3):
        return None
    count = struct.unpack_from("<I", data, 8)[0]
    pairs = struct.iter_unpack("<ii", data[12 : 12 + 8 * count])
    return [(header_address + location, header_address + entry - frame_address) for location, entry in pairs]
