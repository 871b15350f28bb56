"""Data migration hooks of a patch: which functions they are, and that they do only what a hook may (docs/hooks.md).

They run on a thread that libc does not know, while any other may hold any lock: a call into the program or a library
could wait for ever or spoil what belongs to another thread. So what a hook reaches is followed here, call by call.
"""

from dataclasses import dataclass, field
from pathlib import Path

from iced_x86 import FlowControl, Mnemonic, OpKind, Register

from podgraft_builder.code import Step
from podgraft_builder.compare import Comparison
from podgraft_builder.objects import Function, ObjectFile
from podgraft_builder.verdict import Verdict
from podgraft_bundle.errors import Reason
from podgraft_bundle.manifest import ARENA, HOOK_KINDS, HookKind

INCLUDE = Path(__file__).parent / "include"
HEADER = INCLUDE / "podgraft.h"
_SECTION = ".podgraft."
# Ends the program as it would anywhere; the canary is in the block that the engine gives to the thread.
_ALLOWED = frozenset({ARENA, "__stack_chk_fail"})
_CANARY = 0x28  # psABI x86-64: offset of the stack protector's word from the thread pointer
_SYSTEM_CALLS = frozenset({Mnemonic.SYSCALL, Mnemonic.SYSENTER, Mnemonic.INT})
_THREAD = frozenset({Register.FS, Register.GS})
_MEMCPY = frozenset({"memcpy", "memmove", "memset"})

Key = tuple[str, Function]


@dataclass(frozen=True)
class HookFunction:
    """One hook: its kind, and where it is."""

    kind: HookKind
    label: str
    function: Function


def find_hooks(comparisons: dict[str, Comparison], verdict: Verdict) -> list[HookFunction]:
    """Return the hooks of a patch, in their order; what is wrong with them goes into the verdict."""
    found = [
        HookFunction(kind, label, function)
        for kind in HOOK_KINDS
        for label, comparison in sorted(comparisons.items())
        for section in comparison.new.sections.values()
        if section.name == _SECTION + kind
        for function in comparison.new.functions_in(section.index)
    ]
    for label, comparison in sorted(comparisons.items()):
        if any(section.name.startswith(_SECTION) for section in comparison.old.sections.values()):
            _refuse(verdict, f"{label}: the source has hooks before the patch; they belong into the patch alone", "")
    for kind in HOOK_KINDS:
        names = [hook.function.name for hook in found if hook.kind == kind]
        if len(names) > 1:
            _refuse(verdict, f"{', '.join(names)}: there can be one {kind} hook; let one call the other", names[1])
    for hook in found:
        for detail in _Walk(comparisons).run((hook.label, hook.function)):
            _refuse(verdict, f"{kind_name(hook.kind)} {hook.function.name}: {detail}", hook.function.name)
    return found


def kind_name(kind: HookKind) -> str:
    """Return the name of a kind as the source has it."""
    return f"PODGRAFT_{kind.upper()}"


def _refuse(verdict: Verdict, detail: str, function: str) -> None:
    verdict.refuse(Reason.HOOK_MISUSED, detail, function=function)


@dataclass
class _Walk:
    """Everything that one hook may execute."""

    comparisons: dict[str, Comparison]
    seen: list[Key] = field(default_factory=list)
    taken: list[Key] = field(default_factory=list)
    calls_pointers: bool = False

    def run(self, start: Key) -> list[str]:
        """Return what is wrong in the hook and in what it calls."""
        self.seen.append(start)
        found: list[str] = []
        at = 0
        while at < len(self.seen):
            found += self._look(*self.seen[at])
            at += 1
            if at == len(self.seen) and self.calls_pointers:
                # podgraft.h calls constructors by pointers, which can only be to these.
                self.seen += [key for key in self.taken if key not in self.seen]
        return list(dict.fromkeys(found))

    def _look(self, label: str, function: Function) -> list[str]:
        which = self.comparisons[label].new
        found = []
        for step in which.decoded(function).steps:
            why = self._instruction(which, function, step)
            if why is not None:
                found.append(f"{function.name} {why}")
        calls = which.branch_fields(function.section)
        for item, place in which.places_of(function.section):
            if not function.start <= item.offset < function.start + function.size:
                continue
            call = item.offset in calls
            if place.section is None:
                why = self._named(item.symbol.name, call=call)
            elif place.section in which.sections and which.sections[place.section].executable:
                why = self._code(label, which.function_at(place.section, place.offset), call=call)
            else:
                why = None
            if why is not None:
                found.append(f"{function.name} {why}")
        return found

    def _instruction(self, which: ObjectFile, function: Function, step: Step) -> str | None:
        instruction = step.instruction
        if instruction.mnemonic in _SYSTEM_CALLS:
            return "makes a system call"
        memory = OpKind.MEMORY in {instruction.op_kind(n) for n in range(instruction.op_count)}
        if memory and instruction.memory_segment in _THREAD:
            plain = instruction.memory_base == instruction.memory_index == Register.NONE and not step.relocations
            canary = plain and instruction.memory_segment == Register.FS
            if not (canary and instruction.memory_displacement == _CANARY):
                return "uses a thread-local variable, and its thread has none"
        if instruction.flow_control == FlowControl.INDIRECT_CALL and not step.relocations:
            if not function.name.startswith("podgraft_"):
                return "calls by a pointer: where that leads cannot be seen"
            self.calls_pointers = True
        elif instruction.flow_control == FlowControl.INDIRECT_CALL:
            return f"calls {step.relocations[0].symbol.name}, which is not new in the patch"
        elif instruction.flow_control == FlowControl.INDIRECT_BRANCH and not _has_jump_table(which, function):
            return "jumps by a pointer: where that leads cannot be seen"
        return None

    def _named(self, name: str, *, call: bool) -> str | None:
        """A name of another object: a new function of the patch, or something of the program or a library."""
        for label, comparison in sorted(self.comparisons.items()):
            function = comparison.new.functions.get(name)
            if function is not None and not function.local:
                return self._code(label, function, call=call)
        if not call or name in _ALLOWED:
            return None
        instead = " (podgraft_copy and podgraft_fill are there for it)" if name in _MEMCPY else ""
        return f"calls {name}, which is not new in the patch{instead}"

    def _code(self, label: str, function: Function | None, *, call: bool) -> str | None:
        comparison = self.comparisons[label]
        if function is None:
            return "refers to code without a function around it"
        if comparison.new.parent_of(function) not in comparison.new_functions:
            return f"calls {function.name}, which is not new in the patch" if call else None
        known = self.seen if call else self.taken
        if (label, function) not in known:
            known.append((label, function))
        return None


def _has_jump_table(which: ObjectFile, function: Function) -> bool:
    """Tell whether a function refers to constants that lead back into it: the table of a switch."""
    for item, place in which.places_of(function.section):
        inside = function.start <= item.offset < function.start + function.size
        if inside and place.section in which.sections and not which.sections[place.section].executable:
            targets = (target for _, target in which.places_of(place.section))
            if any(t.section == function.section for t in targets):
                return True
    return False
