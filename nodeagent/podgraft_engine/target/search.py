# SPDX-License-Identifier: GPL-2.0-only
"""Search bytes of a process or file by the C library: everything that is looked for there is looked for by these."""

import struct
from collections.abc import Iterator
from typing import Final

WORD: Final = 8


def places_of(needle: bytes, data: bytes | bytearray, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Yield where a needle lies in data[start:end], also where it overlaps itself."""
    at = data.find(needle, start, end)
    while at >= 0:
        yield at
        at = data.find(needle, at + 1, end)


def words_with(high: bytes, data: bytes | bytearray, size: int) -> Iterator[tuple[int, int]]:
    """Yield every aligned little-endian word in the first `size` bytes whose high bytes these are: place and value."""
    low = WORD - len(high)
    for at in places_of(high, data, low, size):
        if (at - low) % WORD == 0:
            yield at - low, struct.unpack_from("<Q", data, at - low)[0]
