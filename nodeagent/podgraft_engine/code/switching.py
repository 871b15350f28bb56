# SPDX-License-Identifier: GPL-2.0-only
"""Does a program run on stacks of its own making: ucontext, fibers, coroutines?

A call that is suspended there is on no thread's stack. It is looked for (threads/suspended.py) where something here
says that there may be one, for that takes time by the size of the process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from iced_x86 import Decoder, Instruction, Mnemonic, OpKind, Register

from podgraft_engine.target.module import Module

_UCONTEXT: Final = ("swapcontext", "setcontext", "makecontext")
# OpenSSL's fibers are for asynchronous engines, and hold calls of its own.
_OPENSSL: Final = "ASYNC_start_job"
_C_LIBRARY: Final = "longjmp"
# Frame pointers, and what glibc's lazy binding saves the stack pointer by.
_COMPILERS: Final = (Register.RSP, Register.RBP, Register.RBX)
# Where a switch has its arguments (psABI 3.2.3). From others compilers take what they saved there themselves.
_GIVEN: Final = (Register.RDI, Register.RSI)
# Bytes of `mov rsp,[base+…]` and `mov rsp,reg` as assemblers write them (Intel SDM volume 2, 2.1.5).
_CLASSES: Final = {
    "W": (0x48,),
    "B": (0x49,),
    "l": (0x8B,),
    "s": (0x89,),
    "m": tuple(mode | base for mode in (0x20, 0x60, 0xA0) for base in (0, 1, 2, 3, 5, 6, 7)),
    "r": (0xF4, 0xFC),
}
_LONGEST: Final = 15
_TABLE: Final = bytes(next((ord(c) for c, values in _CLASSES.items() if byte in values), 0) for byte in range(256))
_PATTERNS: Final = (b"Wlm", b"Blm", b"Wsr")


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
        if module.export(_OPENSSL, None) is None:
            why += [f"{module.name} imports {name}" for name in _UCONTEXT if module.imports(name)]
        found = list(_by_hand(module))
        why += [f"{module.name} sets the stack pointer at {at - module.bias:#x}" for _, at in found]
        by_hand += found
    return Switching(why[0], tuple(by_hand)) if why else None


def _by_hand(module: Module) -> Iterator[tuple[int, int]]:
    """Yield instructions that set the stack pointer to what compilers never do, as a switch of stacks must."""
    for start, text in module.texts():
        classes = text.translate(_TABLE)
        for pattern in _PATTERNS:
            at = classes.find(pattern)
            while at >= 0:
                low = _beginning(module, start, start + at)
                if _is_switch(_instruction(text[low - start : at + _LONGEST], low, start + at)):
                    yield low, start + at
                at = classes.find(pattern, at + 1)


def _beginning(module: Module, start: int, address: int) -> int:
    """Return where the function around an address begins; of code that nothing describes, where the one before ends."""
    if module.eh_frame is None:
        return address
    ranges = module.eh_frame.ranges_between(address - module.bias, address - module.bias + 1)
    bounds = (bound + module.bias for found in ranges for bound in found)
    return max((bound for bound in bounds if start <= bound <= address), default=start)


def _instruction(code: bytes, low: int, address: int) -> Instruction | None:
    """Return the instruction at an address, None when the bytes there are the middle of another one."""
    found = next((i for i in Decoder(64, code, ip=low) if i.ip >= address), None)
    return found if found is not None and found.ip == address else None


def _is_switch(instruction: Instruction | None) -> bool:
    if instruction is None or instruction.mnemonic != Mnemonic.MOV or instruction.op0_register != Register.RSP:
        return False
    if instruction.op1_kind == OpKind.MEMORY:
        return instruction.memory_base not in _COMPILERS
    return instruction.op1_kind == OpKind.REGISTER and instruction.op1_register in _GIVEN
