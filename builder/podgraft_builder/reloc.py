"""Relocation types of x86-64 (psABI x86-64, table 4.10 "Relocation Types") that the builder understands."""

R_64, R_PC32, R_GOT32, R_PLT32, R_GOTPCREL, R_32, R_32S = 1, 2, 3, 4, 9, 10, 11
R_DTPOFF64, R_TLSGD, R_TLSLD, R_DTPOFF32, R_GOTTPOFF, R_TPOFF32, R_PC64 = 17, 19, 20, 21, 22, 23, 24
R_GOTPCRELX, R_REX_GOTPCRELX = 41, 42

PC_RELATIVE = frozenset({R_PC32, R_PLT32, R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX, R_GOTTPOFF, R_PC64})
GOT = frozenset({R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX})
THREAD_LOCAL = frozenset({R_TPOFF32, R_TLSGD, R_TLSLD, R_DTPOFF32})
# R_NONE, R_16, R_PC16, R_8, R_PC8; of 64 bits: DTPMOD, DTPOFF, TPOFF, PC, GOTOFF, GOT..., SIZE. All others have 4.
WIDTH: dict[int, int] = {0: 0, 12: 2, 13: 2, 14: 1, 15: 1}
WIDTH |= dict.fromkeys((R_64, 16, R_DTPOFF64, 18, R_PC64, 25, *range(27, 32), 33), 8)
# What patch.o may contain; the engine applies these and no others.
ALLOWED = frozenset(
    {R_64, R_PC32, R_PLT32, R_GOTPCREL, R_GOTPCRELX, R_REX_GOTPCRELX, R_32, R_32S, R_GOTTPOFF, R_TPOFF32, R_PC64}
)
NAMES = {
    R_64: "R_X86_64_64",
    R_PC32: "R_X86_64_PC32",
    R_PLT32: "R_X86_64_PLT32",
    R_GOTPCREL: "R_X86_64_GOTPCREL",
    R_32: "R_X86_64_32",
    R_32S: "R_X86_64_32S",
    R_TLSGD: "R_X86_64_TLSGD",
    R_TLSLD: "R_X86_64_TLSLD",
    R_DTPOFF32: "R_X86_64_DTPOFF32",
    R_GOTTPOFF: "R_X86_64_GOTTPOFF",
    R_TPOFF32: "R_X86_64_TPOFF32",
    R_PC64: "R_X86_64_PC64",
    R_GOTPCRELX: "R_X86_64_GOTPCRELX",
    R_REX_GOTPCRELX: "R_X86_64_REX_GOTPCRELX",
}


def width(kind: int) -> int:
    """Return the number of bytes that a relocation of this type writes."""
    return WIDTH.get(kind, 4)


def name(kind: int) -> str:
    """Return the psABI name of a type."""
    return NAMES.get(kind, f"type {kind}")
