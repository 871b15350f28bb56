# SPDX-License-Identifier: GPL-2.0-only
"""Where a sleeping thread will come by when it wakes: one instruction behind its system call (design 5, b).

Found by structure, never by a table of offsets. The replaced bytes are one instruction of at least 5 bytes, or a `ret`
and the padding behind it. glibc before 2.41 surrounds a blocking call by two calls that turn asynchronous cancellation
on and off: a thread that is cancelled between them is unwound from where it stands, and no unwinder knows our code. So
where calls stand on both sides, the point is a `ret` of the second one.
"""

from dataclasses import dataclass
from typing import Final

from iced_x86 import Decoder, FlowControl, Instruction, Mnemonic, OpKind

from podgraft_bundle.errors import Reason, Refusal
from podgraft_engine.code.holes import is_padding
from podgraft_engine.code.puns import NEAR_JUMP
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.module import Module

LOOK_AHEAD: Final = 4
LOOK_AHEAD_IN_FUNCTION: Final = 24
CALL_AHEAD: Final = 12
# A child or a new program goes on there, on a stack that is not the caller's: rt_sigreturn, clone, fork, vfork,
# execve, exit, exit_group, execveat, clone3.
NEVER: Final = frozenset({15, 56, 57, 58, 59, 60, 231, 322, 435})
_STRAIGHT: Final = (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH)
_LARGEST: Final = 2**16


@dataclass(frozen=True)
class WakePoint:
    """Address and length of the replaced bytes, the displaced instruction, and what the file has there."""

    address: int
    length: int
    displaced: Instruction
    original: bytes


def declared_point(modules: list[Module], name: str) -> WakePoint:
    """Return the point in a function that the user declares a point of quiescence: in a straight line from its entry.

    Raises:
        Refusal: UNRESOLVED_REFERENCE when no module, or more than one, has a function of that name; NO_PATCH_SITE.
    """
    found = [(m, address) for m in modules for address in m.functions_named(name)]
    if len(found) != 1:
        raise Refusal(Reason.UNRESOLVED_REFERENCE, f"{len(found)} functions named {name} are in the process")
    module, address = found[0]
    code = [one for one in _function(module, address) if one.ip >= address]
    point = _first_that_fits(module, code, 0, LOOK_AHEAD_IN_FUNCTION)
    if point is None:
        raise Refusal(Reason.NO_PATCH_SITE, f"no instruction at the beginning of {name} can hold a jump")
    return point


class WakePoints:
    """Finds the point behind a system call; what was found is kept."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = modules
        self._found: dict[int, WakePoint | None] = {}

    def behind(self, pc: int) -> WakePoint | None:
        """Return the point that a thread passes which will go on at `pc` after its call; None when none is safe."""
        if pc not in self._found:
            self._found[pc] = self._search(pc)
        return self._found[pc]

    def module_at(self, address: int) -> Module | None:
        """Return the module whose code lies at an address."""
        return next((m for m in self._modules if m.contains(address)), None)

    def _search(self, pc: int) -> WakePoint | None:
        module = self.module_at(pc)
        if module is None or module.runs_goroutines:
            return None
        code = _function(module, pc)
        at = next((i for i, one in enumerate(code) if one.ip == pc), 0)
        if not at or code[at - 1].mnemonic != Mnemonic.SYSCALL:
            return None
        before, after = _call_before(code, at - 1), _call_after(code, at)
        if before is None:
            return _first_that_fits(module, code, at)
        if after is None:
            return None
        return _at_a_return(module, _function(module, after), after)


def _function(module: Module, pc: int) -> list[Instruction]:
    """Decode the function around a pc, from the file; empty when its bounds are not known."""
    frames = module.eh_frame
    bounds = frames.range_of(pc - module.bias) if frames else None
    if bounds is None or bounds[1] - bounds[0] > _LARGEST:
        return []
    start, end = bounds[0] + module.bias, bounds[1] + module.bias
    code = module.original(start, end - start)
    return list(Decoder(64, code, ip=start)) if code else []


def _call_before(code: list[Instruction], syscall: int) -> int | None:
    """Return the target of the call that stands before a system call, in a straight line."""
    for one in reversed(code[:syscall]):
        if one.flow_control == FlowControl.CALL:
            return one.near_branch_target if one.op0_kind == OpKind.NEAR_BRANCH64 else 0
        if one.flow_control not in _STRAIGHT or one.mnemonic == Mnemonic.SYSCALL:
            return None
    return None


def _call_after(code: list[Instruction], at: int) -> int | None:
    """Return the target of the direct call that comes after a system call, in a straight line."""
    for one in code[at : at + CALL_AHEAD]:
        if one.flow_control == FlowControl.CALL:
            return one.near_branch_target if one.op0_kind == OpKind.NEAR_BRANCH64 else None
        if one.flow_control not in _STRAIGHT or one.mnemonic == Mnemonic.SYSCALL:
            return None
    return None


def _first_that_fits(module: Module, code: list[Instruction], at: int, ahead: int = LOOK_AHEAD) -> WakePoint | None:
    for one in code[at : at + ahead]:
        point = _point(module, code, one)
        if point is not None:
            return point
        if one.flow_control not in _STRAIGHT or one.mnemonic == Mnemonic.SYSCALL:
            return None
    return None


def _at_a_return(module: Module, code: list[Instruction], entry: int) -> WakePoint | None:
    """Return the first `ret` of a function, behind its entry, that has room for a jump."""
    returns = [one for one in code if one.ip > entry and one.flow_control == FlowControl.RETURN]
    return next(filter(None, (_point(module, code, one) for one in returns)), None)


def _point(module: Module, code: list[Instruction], one: Instruction) -> WakePoint | None:
    """Return a point at one instruction if its bytes, with padding behind a `ret`, can hold a jump."""
    if one.ip // PAGE != (one.ip + NEAR_JUMP - 1) // PAGE:
        return None  # two page switches are not one step
    if one.flow_control == FlowControl.RETURN:
        length = max(one.len, NEAR_JUMP)
        behind = module.original(one.next_ip, length - one.len) if one.len < length else b""
        # An instruction that only begins in these bytes must be padding as a whole, which the longer look tells.
        if behind is None or (behind and not _padding_for(module, one.next_ip, length - one.len)):
            return None
    elif one.flow_control in (*_STRAIGHT, FlowControl.UNCONDITIONAL_BRANCH) and one.len >= NEAR_JUMP:
        if one.mnemonic == Mnemonic.SYSCALL or one.is_jcx_short or one.is_loop or one.is_loopcc:
            return None
        length = one.len
    else:
        return None
    end = one.ip + length
    if any(t is not None and one.ip < t < end for t in map(_target, code)):
        return None
    original = module.original(one.ip, length)
    return WakePoint(one.ip, length, one, original) if original else None


def _padding_for(module: Module, address: int, size: int) -> bool:
    """Tell whether whole padding instructions cover at least `size` bytes from an address."""
    for length in range(size, size + 15):
        data = module.original(address, length)
        if data is None:
            return False
        if is_padding(data):
            return True
    return False


def _target(one: Instruction) -> int | None:
    return one.near_branch_target if one.op0_kind == OpKind.NEAR_BRANCH64 else None
