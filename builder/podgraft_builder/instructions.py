"""One instruction of the old build and one of the running binary: the same but for addresses?"""

from iced_x86 import Instruction, OpKind, Register

from podgraft_builder import reloc
from podgraft_builder.code import IMMEDIATES
from podgraft_builder.objects import Relocation

# What an instruction says beside its operands: prefixes, and what only EVEX can (Intel SDM vol. 2A, 2.7).
_BESIDE = (
    *("has_rep_prefix", "has_repne_prefix", "has_lock_prefix", "segment_prefix"),
    *("op_mask", "zeroing_masking", "rounding_control", "suppress_all_exceptions", "is_broadcast"),
)


class Mismatch(Exception):
    """The running binary has other code here; says where."""


def same_instruction(x: Instruction, y: Instruction, free: str | set[str] | None) -> bool:  # noqa: PLR0911
    """Compare two instructions, but for the fields in `free` ("displacement", "immediate")."""
    skip = {free} if isinstance(free, str) else free or set()
    if x.mnemonic != y.mnemonic or x.op_count != y.op_count or x.code != y.code:
        return False
    if any(getattr(x, name) != getattr(y, name) for name in _BESIDE):
        return False
    for index in range(x.op_count):
        kind = x.op_kind(index)
        if kind != y.op_kind(index):
            return False
        if kind == OpKind.REGISTER and x.op_register(index) != y.op_register(index):
            return False
        if kind in IMMEDIATES and "immediate" not in skip and x.immediate(index) != y.immediate(index):
            return False
        if kind == OpKind.MEMORY and not _same_memory(x, y, free="displacement" in skip):
            return False
    return True


def _same_memory(x: Instruction, y: Instruction, *, free: bool) -> bool:
    if (x.memory_base, x.memory_index, x.memory_index_scale) != (y.memory_base, y.memory_index, y.memory_index_scale):
        return False
    if x.memory_base == Register.RIP:  # without a relocation this would be an address inside the function
        return free
    return free or x.memory_displacement == y.memory_displacement


def memory_target(y: Instruction) -> int | None:
    """Return the address that an instruction names relative to itself, if it does."""
    has = any(y.op_kind(index) == OpKind.MEMORY for index in range(y.op_count))
    return int(y.memory_displacement) if has and y.memory_base == Register.RIP else None


def relocated_value(item: Relocation, x: Instruction, y: Instruction) -> tuple[str, int]:
    """Return which field of the instruction a relocation fills, and what the running one has there (absolute)."""
    if item.type in reloc.PC_RELATIVE:
        target = memory_target(y)
        if target is None:
            raise Mismatch(both(x, y))
        return "displacement", target
    memory = any(x.op_kind(index) == OpKind.MEMORY for index in range(x.op_count))
    immediates = [index for index in range(x.op_count) if x.op_kind(index) in IMMEDIATES]
    last = immediates and item.offset + reloc.width(item.type) == x.next_ip
    if memory and not last:
        return "displacement", int(y.memory_displacement)
    if not immediates or y.op_count <= immediates[0] or y.op_kind(immediates[0]) not in IMMEDIATES:
        raise Mismatch(both(x, y))
    return "immediate", int(y.immediate(immediates[0]))


def both(x: Instruction, y: Instruction) -> str:
    """Return both, for people."""
    return f"built `{x}` at +{x.ip:#x}, running `{y}` at {y.ip:#x}"
