"""The build id of an ELF file: the name under which every module is known."""

from typing import BinaryIO

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from elftools.elf.segments import NoteSegment


def read_build_id(stream: BinaryIO) -> str | None:
    """Return the GNU build id of an ELF file in lower-case hex, or None when it has none or is no ELF file."""
    try:
        elf = ELFFile(stream)
        for part in (*elf.iter_segments("PT_NOTE"), *elf.iter_sections("SHT_NOTE")):
            if not isinstance(part, NoteSegment | NoteSection):
                continue
            for note in part.iter_notes():
                if note["n_type"] == "NT_GNU_BUILD_ID":
                    return str(note["n_desc"])
    except (ELFError, ValueError, UnicodeDecodeError):
        return None
    return None
