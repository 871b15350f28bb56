"""What a client sees of CVE-2025-32023: old code counts a broken HyperLogLog, fixed code refuses it."""

import struct
from collections.abc import Callable

KEY = "demo:broken"
OLD = "0"
FIXED = "INVALIDOBJ Corrupted HLL object detected"
# hyperloglog.c: magic, encoding 1 (sparse), 3 unused bytes, a cached cardinality of 8; then the opcodes:
# XZERO (01xxxxxx yyyyyyyy) over all 16384 registers, and a VAL (1vvvvvxx) for one register more than there are.
BROKEN = struct.pack(">4sB3x8x", b"HYLL", 1) + struct.pack(">H", 0x4000 | 16384 - 1) + b"\x80"

# Runs redis-cli with these words and this standard input, returns what it prints.
Client = Callable[[list[str], bytes], str]


def answer(client: Client) -> str:
    """Store the broken value, count it together with itself (no cached count is used then), return the answer."""
    client(["-x", "SET", KEY], BROKEN)
    said = client(["PFCOUNT", KEY, KEY], b"").strip()
    client(["DEL", KEY], b"")
    return said
