# SPDX-License-Identifier: GPL-2.0-only
"""Does a program run on stacks of its own making: ucontext, fibers, coroutines?

A call that is suspended there is on no thread's stack. It is looked for (threads/suspended.py) where something here
says that there may be one, for that takes time by the size of the process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register

from podgraft_engine.target.module import Module
from podgraft_engine.target.search import places_of

_UCONTEXT: Final = frozenset({"swapcontext", "setcontext", "makecontext"})
# OpenSSL's fibers are for asynchronous engines, and hold calls of its own.
_OPENSSL: Final = b"crypto/async/async.c"  # a name in its table of errors
_C_LIBRARY: Final = "longjmp"
# Frame pointers, and what glibc's lazy binding saves the stack pointer by.
_COMPILERS: Final = (Register.RSP, Register.RBP, Register.RBX)
# Bytes of `mov rsp,[base+…]` and `mov rsp,reg` as assemblers write them (Intel SDM volume 2, 2.1.5).
_CLASSES: Final = {
    "W": (0x48,),
    "B": (0x49,),
    "R": (0x4C,),
    "l": (0x8B,),
    "s": (0x89,),
    "m": tuple(mode | base for mode in (0x20, 0x60, 0xA0) for base in range(8)),
    "r": tuple(0xC4 | register << 3 for register in range(8)),
}
_CALLS: Final = (FlowControl.CALL, FlowControl.INDIRECT_CALL)
_LONGEST: Final = 15
_FARTHEST: Final = 4096  # a switch of stacks is short
_TABLE: Final = bytes(next((ord(c) for c, values in _CLASSES.items() if byte in values), 0) for byte in range(256))
_PATTERNS: Final = (b"Wlm", b"Blm", b"Wsr", b"Rsr")
_EXECUTABLE: Final = 4  # SHF_EXECINSTR


@dataclass(frozen=True)
class Switching:
    """How a process may switch stacks.

    why: what says so ("nginx imports swapcontext"). by_hand: instructions that do it, each with the lowest address that
    its function may begin at.
    """

    why: str
    by_hand: tuple[tuple[int, int], ...] = ()

    def is_switch(self, function: int) -> bool:
        """Tell whether a function that begins here may be one that switches by hand."""
        return any(low <= function <= at for low, at in self.by_hand)


def find_switching(modules: list[Module]) -> Switching | None:
    """Return how a process may switch stacks, None where nothing says that it does."""
    why: list[str] = []
    by_hand: list[tuple[int, int]] = []
    for module in modules:
        if module.export(_C_LIBRARY, None) is not None:
            continue
        names = {name for name in _UCONTEXT if module.imports(name)}
        if names and ("swapcontext" in names or not _holds(module, _OPENSSL)):
            why += [f"{module.name} imports {name}" for name in sorted(names)]
        found = list(_by_hand(module))
        why += [f"{module.name} sets the stack pointer at {at - module.bias:#x}" for _, at in found]
        by_hand += found
    return Switching(why[0], tuple(by_hand)) if why else None


def _by_hand(module: Module) -> Iterator[tuple[int, int]]:
    """Yield instructions that set the stack pointer to what compilers never do, as a switch of stacks must."""
    for start, code in _code(module):
        classes = code.translate(_TABLE)
        for pattern in _PATTERNS:
            for at in places_of(pattern, classes):
                low, described = _beginning(module, start, start + at)
                before = code[low - start : at + _LONGEST]
                if start + at - low <= _FARTHEST and _switches(before, low, start + at, described=described):
                    yield low, start + at


def _holds(module: Module, text: bytes) -> bool:
    """Tell whether some text is in what a file maps."""
    return any(text in segment.data() for segment in module.elf.iter_segments("PT_LOAD"))


def _code(module: Module) -> list[tuple[int, bytes]]:
    """Return the code with its run-time addresses; segments, which may hold data as well, where sections are gone."""
    sections = [s for s in module.elf.iter_sections("SHT_PROGBITS") if s["sh_flags"] & _EXECUTABLE]
    return [(module.bias + s["sh_addr"], s.data()) for s in sections] or module.texts()


def _beginning(module: Module, start: int, address: int) -> tuple[int, bool]:
    """Return where the function around an address begins; of code that nothing describes, where the one before ends."""
    link, frames = address - module.bias, module.eh_frame
    if frames is None:
        return address, False
    around = frames.range_of(link)
    if around is not None:
        return max(start, around[0] + module.bias), True
    ends = (end + module.bias for _, end in frames.ranges_between(link, link + 1))
    return max((end for end in ends if start <= end <= address), default=start), False


def _switches(code: bytes, low: int, address: int, *, described: bool) -> bool:
    """Tell whether the instruction at an address takes the stack pointer from where it never was in this function.

    Compilers bring back what they have saved, from a register in functions with a frame pointer or with calls alone.
    """
    left, held, compiled = False, set[int](_COMPILERS), False
    for instruction in Decoder(64, code, ip=low):
        if instruction.ip >= address:
            return instruction.ip == address and _takes(instruction, held, left=left and not compiled)
        copied = instruction.mnemonic == Mnemonic.MOV and instruction.op1_register == Register.RSP
        if instruction.flow_control == FlowControl.RETURN and not described:  # another function may begin
            left, held, compiled = False, set(_COMPILERS), False
        elif copied or (instruction.mnemonic == Mnemonic.LEA and instruction.memory_base == Register.RSP):
            left = True
            held.add(instruction.op0_register)
            compiled = compiled or (copied and instruction.op0_register == Register.RBP)
        elif instruction.flow_control in _CALLS:
            compiled = True
        elif instruction.op1_kind == OpKind.MEMORY and instruction.memory_base not in held:
            held.discard(instruction.op0_register)  # what is loaded anew is something else
    return False


def _takes(instruction: Instruction, held: set[int], *, left: bool) -> bool:
    """Tell whether an instruction is a switch. left: the stack pointer was put somewhere before."""
    if instruction.mnemonic != Mnemonic.MOV or instruction.op0_register != Register.RSP:
        return False
    if instruction.op1_kind == OpKind.MEMORY:
        return instruction.memory_base not in _COMPILERS
    return left and instruction.op1_kind == OpKind.REGISTER and instruction.op1_register not in held
