# SPDX-License-Identifier: GPL-2.0-only
"""The hooks of the patches in one process: each is called at most once in one life of its patch, whoever dies.

What is known: the record says `begun` before the helper enters, and the helper itself writes into the control words of
the room that it has entered and that it has finished. So the next engine always knows, but in a child that was forked
in the middle of a hook: there the hook was cut off, and it is not called again.
"""

import time
from dataclasses import dataclass

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.manifest import HookKind
from podgraft_bundle.protocol import HookRan
from podgraft_engine.code.linker import Linked
from podgraft_engine.helper.mailbox import Helper, living_helper
from podgraft_engine.hooks.arena import make_arena
from podgraft_engine.hooks.call import FAULT, OUT_OF_TIME, Caller, Fault
from podgraft_engine.hooks.room import ENTERED, FINISHED, POSTED, Room, make_room
from podgraft_engine.inspection import Findings, Target
from podgraft_engine.patched.state import Document, HookRecord, PatchRecord, State
from podgraft_engine.steps import Step, reached
from podgraft_engine.threads.migration import Emit


@dataclass
class Hooks:
    """All hooks of one process, and the means to call them."""

    target: Target
    state: State
    helper: Helper
    emit: Emit

    def provide(self, bundle: Bundle, findings: Findings) -> None:
        """Make what hooks and shadow variables need, before the new code is linked.

        Raises:
            Refusal: NO_ROOM_NEARBY.
        """
        if bundle.manifest.hooks:
            make_room(self.target.process, self.target.memory, self.helper, self.state)
        for reference in bundle.manifest.references:
            if reference.kind == "arena":
                arena = make_arena(self.target.process, self.target.memory, self.helper, self.state)
                findings.values[reference.symbol] = arena

    def require(self, record: PatchRecord, kind: HookKind) -> None:
        """Call the hook of a kind, if there is one that was not called yet, and see that it agrees.

        Raises:
            Refusal: HOOK_REFUSED, HOOK_FAILED, HOOK_CUT_OFF. PodgraftError: PROCESS_EXITED, HELPER_UNREACHABLE.
        """
        hook = self.run(record, kind)
        if hook is not None and hook.state == "failed":
            raise Refusal(hook.reason or Reason.HOOK_FAILED, hook.why)

    def run(self, record: PatchRecord, kind: HookKind) -> HookRecord | None:
        """Call the hook of a kind, if there is one that was not called yet; events and the record say how it went."""
        hook = next((h for h in record.hooks if h.kind == kind), None)
        if hook is not None and hook.state == "idle":
            self._call(record, hook)
        return hook

    def settle(self) -> None:
        """Write down what came of the hooks that an engine before us had begun; they have ended (`wait_for_hook`)."""
        for record in self.state.document.patches:
            for hook in record.hooks:
                if hook.state == "begun":
                    self._note(record, hook, None, 0.0)

    def _call(self, record: PatchRecord, hook: HookRecord) -> None:
        room = Room(self.target.memory, self.state.document.room)
        began = time.monotonic()
        run = self.state.document.hook_runs + 1

        def commit() -> None:
            self.state.document.hook_runs = hook.run = run
            hook.state = "begun"
            self.state.commit()

        # The idle time of the helper must not end while it is looked for at rest.
        self.helper.keep_alive()
        with Caller(self.target.process, room, self.helper.tid) as caller:
            caller.enter(run, hook.address, self.helper.address, commit)
            caller.follow(hook.limit)
        self._note(record, hook, caller.fault, time.monotonic() - began)

    def _note(self, record: PatchRecord, hook: HookRecord, fault: Fault | None, seconds: float) -> None:
        """Turn the control words into the record's words, commit and tell."""
        control = Room(self.target.memory, self.state.document.room).control()
        mine = control.run == hook.run
        if mine and control.phase == POSTED:  # killed before the helper was sent: it was never called
            hook.state, hook.run = "idle", 0
            self.state.commit()
            return
        name = f"{hook.kind} hook {hook.function}"
        if not mine or control.phase == ENTERED:
            hook.reason, hook.why = Reason.HOOK_CUT_OFF, f"nobody is left in the {name}, and it did not end"
        elif control.outcome == OUT_OF_TIME:
            hook.reason, hook.why = Reason.HOOK_FAILED, f"the {name} was ended after {hook.limit:g} s"
        elif control.outcome == FAULT:
            hook.reason, hook.why = Reason.HOOK_FAILED, f"the {name} was ended by {_where(record, fault)}"
        elif control.result:
            hook.reason, hook.why = Reason.HOOK_REFUSED, f"the {name} returned {control.result}"
        hook.state = "failed" if hook.reason else "done"
        self.state.commit()
        reached(Step.HOOK_NOTED)
        result = control.result if mine and control.phase == FINISHED and not control.outcome else None
        self.emit(
            HookRan(
                kind=hook.kind,
                function=hook.function,
                ok=hook.state == "done",
                result=result,
                why=hook.why or None,
                seconds=round(seconds, 6),
            )
        )


def hook_records(bundle: Bundle, linked: Linked) -> list[HookRecord]:
    """Return the records of a bundle's hooks, none of them called yet."""
    return [
        HookRecord(kind=h.kind, function=h.symbol, address=linked.functions[h.symbol][0], limit=h.limit)
        for h in bundle.manifest.hooks
    ]


def renew(record: PatchRecord, *kinds: HookKind) -> None:
    """Let hooks be called again: a new life of the patch begins, or a new try of a revert; the caller commits."""
    for hook in record.hooks:
        if hook.kind in kinds:
            hook.state, hook.run, hook.reason, hook.why = "idle", 0, None, ""


def skip(record: PatchRecord, *kinds: HookKind) -> None:
    """Take hooks for called, as the operator wants it; the caller commits."""
    for hook in record.hooks:
        if hook.kind in kinds:
            hook.state, hook.reason, hook.why = "done", None, ""


def failed(record: PatchRecord, kind: HookKind) -> bool:
    """Tell whether the hook of a kind was called and did not agree."""
    return any(h.kind == kind and h.state == "failed" for h in record.hooks)


def prepared_by_hook(record: PatchRecord) -> bool:
    """Tell whether there is something that hooks of a revert have to take back: the one before the apply went well."""
    return all(h.state == "done" for h in record.hooks if h.kind == "pre_apply")


def wait_for_hook(target: Target) -> None:
    """Watch over a hook that an engine before us has begun until it has ended: till then the helper takes no command.

    Raises:
        PodgraftError: PROCESS_EXITED, BUSY.
    """
    document = target.state.document if target.state else None
    hook = _begun(document) if document else None
    if document is None or hook is None or target.block is None:
        return
    room = Room(target.memory, document.room)
    tid = living_helper(target.process, target.memory, target.block.slots()["mailbox"])
    if not tid or room.control().phase == FINISHED:
        return
    try:
        with Caller(target.process, room, tid) as caller:
            if caller.inside():
                caller.follow(hook.limit)
    except PodgraftError as error:
        if error.reason != Reason.HELPER_UNREACHABLE:
            raise
        # It has left meanwhile, as idle helpers do; the control words tell how far it came.


def _begun(document: Document) -> HookRecord | None:
    return next((h for p in document.patches for h in p.hooks if h.state == "begun"), None)


def _where(record: PatchRecord, fault: Fault | None) -> str:
    if fault is None:
        return "a fault"
    place = next((r for r in record.new if r.start <= fault.rip < r.end), None)
    where = f"{place.function}+{fault.rip - place.start:#x}" if place else f"{fault.rip:#x}"
    return f"{fault.signal} in {where}, address {fault.address:#x}"
