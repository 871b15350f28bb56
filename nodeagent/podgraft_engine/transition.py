# SPDX-License-Identifier: GPL-2.0-only
"""The life of a patch in one process: start, complete, reverse. Each step is committed to the state before the next.

An engine that is killed leaves a phase behind; the next one recovers the pages and goes on from that phase. The order
of phases is preparing, prepared, switching, migrating, finalizing, finalized; back: reverting, restoring, retired.
"""

import struct
import time
from contextlib import suppress
from itertools import islice
from typing import Self

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import DeadlineError, PodgraftError, Reason, Refusal
from podgraft_bundle.manifest import HOOK_KINDS
from podgraft_bundle.protocol import Finalized, Prepared, Reverted, Switched
from podgraft_engine.code.wakepoints import declared_point
from podgraft_engine.exceptions import Exceptions
from podgraft_engine.helper import block
from podgraft_engine.helper.carrier import Borrowed, check_filters, choose, obtain_helper
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.helper.rpc import is_sealed
from podgraft_engine.hooks.hooks import Hooks, failed, prepared_by_hook, renew, skip, wait_for_hook
from podgraft_engine.inspection import inspect, open_target, report
from podgraft_engine.patched.layers import code_of_replaced, lying_below, lying_over
from podgraft_engine.patched.pages import Pages, compose, is_intact, pages_of
from podgraft_engine.patched.state import (
    BEFORE_SWITCH,
    CodeRange,
    PatchRecord,
    Phase,
    State,
    all_code,
    holes_of,
    open_state,
)
from podgraft_engine.prepare import discard, links_of, prepare, release_workspace, reserve_workspace
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.awake import check_awake
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.target.limits import Needs, check_memory
from podgraft_engine.target.module import find_module
from podgraft_engine.target.proc import Process
from podgraft_engine.target.seals import sealed
from podgraft_engine.target.tracer import NotHeld, holds
from podgraft_engine.threads.drain import Looker, drained
from podgraft_engine.threads.migration import Emit, Migration, Tally
from podgraft_engine.threads.mover import Mover, Rule, Stacks, Unwinder
from podgraft_engine.threads.stack import Forbidden
from podgraft_engine.threads.suspended import SuspendedCalls, wait_until_none
from podgraft_engine.wakeup.wakeups import Goal, Wakeups


class Transition:
    """One engine at work on one process. Use as a context manager: the helper is let go at the end."""

    def __init__(self, process: Process, emit: Emit, deadline: float, helpers: int = 1) -> None:
        """Open the process. deadline: on the clock of time.monotonic. helpers: which attempt this is."""
        self._emit = emit
        self._began = time.monotonic()
        self._deadline = deadline
        self._helpers = helpers
        self._target = open_target(process)
        self._process = process
        self._borrowed: Borrowed | None = None
        self._state: State | None = None

    def apply(self, bundle: Bundle, points: list[str]) -> None:
        """Put the bundle's functions into the process and move every thread; goes on where an engine before us stopped.

        Args:
            bundle: what to apply.
            points: functions that the user declares points of quiescence, besides those that the bundle names.

        Raises:
            Refusal: nothing was changed. DeadlineError: threads are left on old code, they run on.
            PodgraftError: PROCESS_EXITED and what can go wrong inside.
        """
        record = self._known(bundle)
        if record is not None and record.phase == "finalized" and self._is_intact(record):
            # A second copy that was loaded since is not patched.
            find_module(self._target.modules, bundle.manifest.module.build_id, bundle.manifest.module.name)
            self._say_finalized(record, Tally())
            return
        if record is not None and points and any(site.reentrant for site in record.sites):
            raise Refusal(
                Reason.NO_PATCH_SITE, "a function branches back to its site: no point may be declared any more"
            )
        if record is None:
            record = self._start(bundle, points)
        else:
            self._resume(bundle.manifest.name)
            record = self._record(bundle.manifest.name)
            if record.phase == "finalized":
                self._abandon(record)
                record = self._start(bundle, points)
            elif record.phase in ("reverting", "restoring"):
                # A revert that was called off: it has begun, so it is finished first.
                self._reverse(record)
                self._reopen()
                record = self._start(bundle, points)
        record.points = sorted({*record.points, *bundle.manifest.points, *points})
        self._open_state.commit()
        tally = self._complete(record)
        self._say_finalized(record, tally)
        self._helper.dismiss()

    def revert(self, name: str, *, skip_hooks: bool = False) -> None:
        """Move every thread back to the old code and bring the file's pages home.

        Args:
            name: of the patch.
            skip_hooks: call none of its hooks; what they would have taken back stays.

        Raises:
            Refusal: NOT_APPLIED, BUSY, HOOK_REFUSED, HOOK_FAILED, HOOK_CUT_OFF.
            DeadlineError: threads are left on new code, they run on.
        """
        document = self._target.state.document if self._target.state else None
        known = document.find(name) if document else None
        if document is None or known is None:
            raise Refusal(Reason.NOT_APPLIED, f"process {self._process.pid} has no patch named {name}")
        other = document.in_transition()
        if other is not None and other.name != name:
            raise Refusal(Reason.BUSY, f"the transition of {other.name} is not finished")
        for over in lying_over(known, document.visible()):
            raise Refusal(Reason.CONFLICTING_PATCH, f"{over.name} lies over {name}")
        self._resume(name)
        record = self._record(name)
        if skip_hooks:
            skip(record, "pre_revert", "post_revert")
        elif failed(record, "pre_revert"):
            renew(record, "pre_revert")  # it said no to an earlier revert
        self._say_reverted(record, self._reverse(record))
        self._helper.dismiss()

    def close(self) -> None:
        """Let go of everything that is open."""
        if self._borrowed is not None:
            self._borrowed.helper.close()
        for module in self._target.modules:
            module.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _helper(self) -> Helper:
        assert self._borrowed is not None  # noqa: S101 (the order of the steps)
        return self._borrowed.helper

    @property
    def _open_state(self) -> State:
        assert self._state is not None  # noqa: S101 (the order of the steps)
        return self._state

    @property
    def _hooks(self) -> Hooks:
        return Hooks(self._target, self._open_state, self._helper, self._emit)

    @property
    def _pages(self) -> Pages:
        return Pages(self._process, self._target.memory, self._helper, self._open_state)

    @property
    def _exceptions(self) -> Exceptions:
        return Exceptions(self._target, self._open_state, self._helper)

    def _known(self, bundle: Bundle) -> PatchRecord | None:
        """Return the record of this very bundle; refuse what stands in its way."""
        document = self._target.state.document if self._target.state else None
        if document is None:
            return None
        other = document.in_transition()
        if other is not None and other.digest != bundle.digest:
            raise Refusal(Reason.BUSY, f"the transition of {other.name} is not finished")
        known = document.find(bundle.manifest.name)
        # Of another version under this name the inspection says whether it may be replaced.
        return known if known is not None and known.digest == bundle.digest else None

    def _record(self, name: str) -> PatchRecord:
        record = self._open_state.document.find(name)
        if record is None:
            raise Refusal(Reason.NOT_APPLIED, f"{name} has gone from the process in the meantime")
        return record

    def _start(self, bundle: Bundle, points: list[str]) -> PatchRecord:
        """Inspect, borrow a carrier, prepare aside, switch the pages: all threads still take old code."""
        findings = inspect(self._target, bundle, points)
        self._emit(report(self._target, findings, bundle))
        if findings.problems or findings.module is None:
            raise findings.problems[0]
        if self._borrowed is None:
            self._try_filters()
            self._enter()
        for page in sorted(findings.pages):
            if is_sealed(self._helper, page):
                raise sealed(page)
        state = self._open_state
        self._hooks.provide(bundle, findings)
        for stale in [p for p in state.document.patches if p.phase in BEFORE_SWITCH]:
            discard(state, self._helper, stale)
        same = (bundle.digest, links_of(findings))
        ready = [p for p in state.document.patches if p.phase == "retired" and (p.digest, p.links) == same]
        retired = next(iter(ready), None)
        if retired is not None:
            # Its code may still be referred to, so it was kept: it serves again.
            if not retired.workspace_size:
                reserve_workspace(self._target, state, self._helper, retired)
            retired.points, retired.replaced = [], findings.replaced
            renew(retired, *HOOK_KINDS)
            # Later ones lie over earlier ones.
            state.document.patches.remove(retired)
            state.document.patches.append(retired)
            self._set_phase(retired, "prepared")
            record = retired
        else:
            record = prepare(self._target, state, self._helper, findings, bundle)
        generation = state.document.generation + 1
        self._emit(
            Prepared(
                generation=generation,
                carrier=self._borrowed.carrier if self._borrowed else None,
                carrier_held_us=self._borrowed.held_us if self._borrowed else None,
                area=record.area,
            )
        )
        state.document.generation = record.generation = generation
        state.commit()
        self._open_gate(record, generation, generation + 1)
        self._exceptions.announce(record)
        record.served = True
        self._set_phase(record, "switching")
        return record

    def _is_intact(self, record: PatchRecord) -> bool:
        return self._target.state is None or is_intact(record, self._target.state.document, self._target.memory)

    def _reopen(self) -> None:
        """Let an inspection see the state as it is now."""
        self._target.state = self._open_state

    def _abandon(self, record: PatchRecord) -> None:
        """Give up a patch whose sites are gone: its module was unloaded, or somebody wrote over them."""
        document = self._open_state.document
        document.pages = [p for p in document.pages if p.live not in pages_of(record)]
        record.links = ""
        self._set_phase(record, "retired")

    def _try_filters(self) -> None:
        """Refuse before anything is touched where a seccomp filter would stop us; `_enter` asks again, by thread."""
        for tid in islice(choose(self._process, None), 1):
            with suppress(NotHeld):
                check_filters(self._process, tid)

    def _resume(self, name: str) -> None:
        """Go on in a process that holds our state already."""
        if self._target.block is None or self._target.state is None:
            raise Refusal(Reason.NOT_APPLIED, f"process {self._process.pid} has no patch named {name}")
        self._enter()

    def _enter(self) -> None:
        """Block, helper, state, and what an engine before us left half done."""
        target = self._target
        check_awake(self._process)
        check_memory(self._process, Needs())
        if target.block is None:
            target.block = block.place(self._process, target.memory)
        # Now, for a helper leaves when it is idle: a file without .eh_frame_hdr is parsed as a whole.
        for module in target.modules:
            module.read_ahead()
        _ = target.switching
        generation = target.state.document.generation if target.state else 0
        wait_for_hook(target)
        self._borrowed = obtain_helper(self._process, target.memory, target.block, generation)
        self._state = open_state(self._process, target.memory, target.block, self._helper)
        self._pages.recover()
        self._hooks.settle()
        if self._open_state.document.in_transition() is None:
            # An engine before us may have been killed between its last thread and its last page.
            self._wakeups().disarm()
            self._exceptions.settle()

    def _complete(self, record: PatchRecord) -> Tally:
        """From `switching` on: switch, migrate, finalize. Each part is skipped or repeated as the phase demands."""
        if record.phase == "switching":
            self._prepare_data(record)
            switched = self._switch_pages(record)
            self._emit(Switched(pages=switched, sites=len(record.sites)))
            self._set_phase(record, "migrating")
        tally = Tally()
        if record.phase == "migrating":
            below = [r for p in lying_below(record, self._open_state.document) for r in all_code(p)]
            old = [*record.old, *below]
            tally = self._migrate(record, [*old, *all_code(record)], record.generation, left=old)
            self._set_phase(record, "finalizing")
        if record.phase == "finalizing":
            self._switch_pages(record)
            self._hooks.run(record, "post_apply")
            self._replace(record)
            self._set_phase(record, "finalized")
            self._release_workspaces(besides=record)
        return tally

    def _replace(self, record: PatchRecord) -> None:
        """Let the patches go that are replaced, and what they had beyond this one: nobody takes their code any more."""
        dropped = [site for site in record.sites if site.dropped]
        if dropped:
            self._drain(record, holes_of(dropped))
            reached(Step.HOLES_DRAINED)
        for patch in [p for p in self._open_state.document.visible() if p.area in record.replaced]:
            patch.complete, patch.phase = False, "retired"
        # From here on a revert leads past them.
        record.complete, record.replaced = True, []
        self._open_state.commit()
        self._tidy(pages_of(record))

    def _prepare_data(self, record: PatchRecord) -> None:
        """Ask the hook before the apply; where it says no, nothing has been switched yet, and the patch is put away.

        Raises:
            Refusal: HOOK_REFUSED, HOOK_FAILED, HOOK_CUT_OFF.
        """
        try:
            self._hooks.require(record, "pre_apply")
        except Refusal:
            self._reverse(record)
            self._helper.dismiss()
            raise

    def _reverse(self, record: PatchRecord) -> Tally:
        """Back to old code: stubs again, a generation that takes the old function, then the pristine pages."""
        state = self._open_state
        if record.phase == "switching":  # nobody has the new generation yet
            self._set_phase(record, "restoring")
        if record.phase in ("migrating", "finalizing", "finalized"):
            self._hooks.require(record, "pre_revert")
            # All threads of an unfinished apply lie in [.., generation]; one more is beyond the gate: old code.
            state.document.generation += 1
            self._open_gate(record, record.generation, state.document.generation)
            self._set_phase(record, "reverting")
        tally = Tally()
        if record.phase == "reverting":
            self._switch_pages(record)
            code = self._entered(record)
            tally = self._migrate(record, code, state.document.generation, left=code, reverting=True)
            self._set_phase(record, "restoring")
        if record.phase == "restoring":
            self._restore(record)
        return tally

    def _restore(self, record: PatchRecord) -> None:
        """Take the sites away, wait until nobody is in a hole, then the holes and the workspace."""
        self._switch_pages(record)
        self._drain(record, all_code(record))
        reached(Step.HOLES_DRAINED)
        self._tidy(pages_of(record), without=record)
        release_workspace(self._open_state, self._helper, record)
        if prepared_by_hook(record):
            self._hooks.run(record, "post_revert")
        record.complete, record.replaced = False, []
        self._set_phase(record, "retired")
        self._exceptions.settle()
        self._release_workspaces(besides=record)

    def _entered(self, record: PatchRecord) -> list[CodeRange]:
        """Return the code that threads may have come into by a patch that is reverted."""
        code = all_code(record)
        if not record.complete:
            document = self._open_state.document
            code += code_of_replaced(record, document)
            code += [r for p in lying_below(record, document) for r in all_code(p)]
        return code

    def _drain(self, record: PatchRecord, ranges: list[CodeRange]) -> None:
        """Wait until nobody is in some code of ours that nothing leads to any more."""
        looker = Looker(self._process, self._stacks(), self._unwinder(record), self._forbid(ranges))
        if not drained(looker, {self._helper.tid}, self._deadline, self._helper.tend):
            raise DeadlineError(Reason.DEADLINE_PASSED, "a thread is still on its way through a jump of ours")

    def _tidy(self, pages: list[int], without: PatchRecord | None = None) -> None:
        """Give pages what is still wanted there, and bring the file's own home where that is nothing."""
        for page in filter(self._pages.has, pages):
            left = compose(self._open_state.document, page, without=without)
            if left:
                self._pages.switch(page, left)
            else:
                self._pages.restore(page)

    def _release_workspaces(self, besides: PatchRecord) -> None:
        """Give back what patches that are gone held for the twins of pages which others still needed."""
        for patch in self._open_state.document.patches:
            if patch.phase == "retired" and patch is not besides:
                release_workspace(self._open_state, self._helper, patch)

    def _switch_pages(self, record: PatchRecord) -> int:
        """Bring every page of the patch to what its phase demands; holes before the sites that jump to them."""
        document = self._open_state.document
        pages = pages_of(record)
        switched = 0
        if record.phase == "switching":
            for page in pages:
                content = compose(document, page, holes_only_of=record)
                switched += bool(content) and self._pages.switch(page, content)
        for page in pages:
            # On the way back a page that was never switched must not be touched: somebody else may have changed it.
            if record.phase != "restoring" or self._pages.has(page):
                switched += self._pages.switch(page, compose(document, page))
        return switched

    def _migrate(
        self,
        record: PatchRecord,
        code: list[CodeRange],
        generation: int,
        *,
        left: list[CodeRange],
        reverting: bool = False,
    ) -> Tally:
        """Move every thread off `code` and to a generation: by the points it comes by, else by our hand.

        left: the part of `code` that nobody takes any more in the end.
        """
        wakeups = self._wakeups(Goal(generation, code))
        declared = [declared_point(self._target.modules, name) for name in record.points]
        wakeups.open_areas(declared)
        stacks = self._stacks()
        old_below = record.generation if reverting and not record.complete else None
        rule = Rule(
            self._forbid([*code, *wakeups.routines]),
            generation,
            Forbidden(wakeups.credulous),
            reverting=reverting,
            old_below=old_below,
            switching=self._target.switching is not None,
        )
        unwinder = self._unwinder(record)
        # A thread that goes back to a call on such a stack must not be ahead of it, and in the end none may be left.
        self._await_suspended(left, unwinder)
        mover = Mover(self._process, stacks, unwinder, rule)
        helper = (self._helper.tid, self._helper.tend)
        # Not before the migration follows the log.
        migration = Migration(self._process, stacks, mover, self._emit, helper=helper, points=wakeups)
        for name, point in zip(record.points, declared, strict=True):
            if not wakeups.declare(point):
                raise PodgraftError(Reason.NO_ROOM_NEARBY, f"there is no room for a declared point in {name}")
        if not migration.run(self._deadline):
            names = "; ".join(f"{w.tid} ({w.name}): {w.why}" for w in migration.tally.waiting[:5])
            raise DeadlineError(Reason.DEADLINE_PASSED, f"{len(migration.tally.waiting)} threads are left: {names}")
        self._await_suspended(left, unwinder)
        wakeups.disarm()
        return migration.tally

    def _await_suspended(self, code: list[CodeRange], unwinder: Unwinder) -> None:
        """Wait until no call of some code is suspended on a stack that no thread is on."""
        if self._target.switching is not None:
            calls = SuspendedCalls(self._process, self._target.memory, self._target.switching, self._tend)
            forbidden = Forbidden(code)
            wait_until_none(lambda: calls.find(forbidden, unwinder.row), self._emit, self._deadline)

    def _tend(self) -> None:
        """Keep the helper while something takes long. Raises DeadlineError when it takes too long."""
        self._helper.tend()
        if time.monotonic() > self._deadline:
            raise DeadlineError(Reason.DEADLINE_PASSED, "the search for calls on other stacks takes longer than that")

    def _wakeups(self, goal: Goal | None = None) -> Wakeups:
        return Wakeups(self._target, self._open_state, self._helper, goal, switching=self._target.switching is not None)

    def _stacks(self) -> Stacks:
        return Stacks(self._process, self._target.memory, self._target.block.address if self._target.block else 0)

    def _forbid(self, ranges: list[CodeRange]) -> Forbidden:
        """Forbid code, and the way back from a signal handler: what lies behind it may be on another stack."""
        returns = [
            CodeRange(function="a signal handler", start=address - 1, end=address + 1)
            for module in self._target.modules
            for address in module.signal_returns
        ]
        return Forbidden([*ranges, *returns])

    def _unwinder(self, record: PatchRecord) -> Unwinder:
        new_code = []
        for patch in self._open_state.document.patches:
            if patch.eh_frame is not None and (patch.served or patch is record):
                address, size = patch.eh_frame
                frames = EhFrame(self._target.memory.read(address, size), address, None)
                new_code.append((patch.code.start, patch.code.end, frames))
        return Unwinder(self._target.modules, new_code)

    def _open_gate(self, record: PatchRecord, new_from: int, new_until: int) -> None:
        """Threads with a generation in [from, until) take the new function; no choice changes by this write alone."""
        self._target.memory.write(record.gate, struct.pack("<2Q", new_from, new_until))
        reached(Step.GATE_OPENED)

    def _set_phase(self, record: PatchRecord, phase: Phase) -> None:
        record.phase = phase
        self._open_state.commit()

    def _say_finalized(self, record: PatchRecord, tally: Tally) -> None:
        self._emit(Finalized.model_validate(self._summary(record, tally)))

    def _say_reverted(self, record: PatchRecord, tally: Tally) -> None:
        self._emit(Reverted.model_validate(self._summary(record, tally)))

    def _summary(self, record: PatchRecord, tally: Tally) -> dict[str, object]:
        return {
            "name": record.name,
            "generation": record.generation,
            "threads": len(tally.done) or len(self._process.threads()),
            "how": dict(tally.how),
            "helpers": self._helpers,
            "max_held_us": round(holds.longest_us, 1),
            "seconds": round(time.monotonic() - self._began, 3),
        }
