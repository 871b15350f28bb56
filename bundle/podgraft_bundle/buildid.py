"""The build id of an ELF file: the name under which every module is known."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

# Files come from containers: a note that claims to be large is not read.
MAX_NOTES = 64 * 1024
MAX_PARTS = 1024
_GNU_BUILD_ID = 3
_NOTE = struct.Struct("<3I")


def read_build_id(stream: BinaryIO) -> str | None:
    """Return the GNU build id of an ELF file in lower-case hex, or None when it has none or is no ELF file."""
    try:
        for offset, size in _note_parts(ELFFile(stream)):
            stream.seek(offset)
            found = _build_id_in(stream.read(min(size, MAX_NOTES)))
            if found is not None:
                return found
    except (ELFError, ValueError, UnicodeDecodeError, OverflowError, KeyError, IndexError, OSError):
        return None
    return None


def _note_parts(elf: ELFFile) -> Iterator[tuple[int, int]]:
    """Yield offset and size of each note segment and section."""
    for index in range(min(elf.num_segments(), MAX_PARTS)):
        header = elf.get_segment(index).header
        if header.p_type == "PT_NOTE":
            yield header.p_offset, header.p_filesz
    for index in range(min(elf.num_sections(), MAX_PARTS)):
        section = elf.get_section(index)
        if section["sh_type"] == "SHT_NOTE":
            yield section["sh_offset"], section["sh_size"]


def _build_id_in(notes: bytes) -> str | None:
    """Find the note in a run of notes (gABI, note section): sizes, type, name and content padded to 4 bytes."""
    position = 0
    while position + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, position)
        name_at = position + _NOTE.size
        content_at = name_at + -(-name_size // 4) * 4
        content = notes[content_at : content_at + size]
        if kind == _GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0" and len(content) == size:
            return content.hex()
        position = content_at + -(-size // 4) * 4
    return None
