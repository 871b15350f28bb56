# SPDX-License-Identifier: GPL-2.0-only
"""One mapping out of many: a process of 10,000 threads has 20,000 lines of maps, and each pass asks for a few."""

from podgraft_engine.target.proc import Mapping, Process, parse_mapping


class Maps:
    """One reading of the memory map, which is in order of address; a line is parsed when its place is asked for."""

    def __init__(self, process: Process) -> None:
        self._text = process.map_text()
        self._last: Mapping | None = None

    def at(self, address: int) -> Mapping | None:
        """Return the mapping that an address lies in; at once where it is that of the last question."""
        if self._last is not None and self._last.start <= address < self._last.end:
            return self._last
        # The last line that begins at the address or below it.
        text, line, low, high = self._text, "", 0, len(self._text)
        while low < high:
            first = text.rfind("\n", low, (low + high) // 2) + 1 or low
            end = text.index("\n", first)
            if address < int(text[first : text.index("-", first)], 16):
                high = first
            else:
                line, low = text[first:end], end + 1
        found = parse_mapping(line) if line else None
        if found is None or address >= found.end:
            return None
        self._last = found
        return found
