# SPDX-License-Identifier: GPL-2.0-only
"""Does a program run on stacks of its own making: ucontext, fibers, coroutines?

A call that is suspended there is on no thread's stack. It is looked for (threads/suspended.py) where something here
says that there may be one, for that takes time by the size of the process.
"""

from collections.abc import Iterator
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
_TABLE: Final = bytes(next((ord(c) for c, values in _CLASSES.items() if byte in values), 0) for byte in range(256))
_PATTERNS: Final = (b"Wlm", b"Blm", b"Wsr")


def switches_stacks(modules: list[Module]) -> str | None:
    """Return by what a process may switch stacks: "nginx imports swapcontext"; None where nothing says that it does."""
    for module in modules:
        if module.export(_C_LIBRARY, None) is not None:
            continue
        found = [] if module.export(_OPENSSL, None) else [name for name in _UCONTEXT if module.imports(name)]
        if found:
            return f"{module.name} imports {found[0]}"
        by_hand = next(_by_hand(module), None)
        if by_hand is not None:
            return f"{module.name} sets the stack pointer at {by_hand - module.bias:#x}"
    return None


def _by_hand(module: Module) -> Iterator[int]:
    """Yield instructions that set the stack pointer to what compilers never do, as a switch of stacks must."""
    for start, text in module.texts():
        classes = text.translate(_TABLE)
        for pattern in _PATTERNS:
            at = classes.find(pattern)
            while at >= 0:
                if _is_switch(_instruction(module, start, text, start + at)):
                    yield start + at
                at = classes.find(pattern, at + 1)


def _instruction(module: Module, start: int, text: bytes, address: int) -> Instruction | None:
    """Return the instruction at an address, None when the bytes there are the middle of another one."""
    if module.eh_frame is None:
        return next(iter(Decoder(64, text[address - start :], ip=address)), None)
    ranges = module.eh_frame.ranges_between(address - module.bias, address - module.bias + 1)
    low = start
    for bounds in ranges:  # code that nothing describes begins where the one before ends
        low = max(low, *(bound + module.bias for bound in bounds if bound + module.bias <= address))
    for instruction in Decoder(64, text[low - start : address - start + 16], ip=low):
        if instruction.ip >= address:
            return instruction if instruction.ip == address else None
    return None


def _is_switch(instruction: Instruction | None) -> bool:
    if instruction is None or instruction.mnemonic != Mnemonic.MOV or instruction.op0_register != Register.RSP:
        return False
    if instruction.op1_kind == OpKind.MEMORY:
        return instruction.memory_base not in _COMPILERS
    return instruction.op1_kind == OpKind.REGISTER and instruction.op1_register in _GIVEN
