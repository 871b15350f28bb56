# SPDX-License-Identifier: GPL-2.0-only
"""The life of a patch in one process: start, complete, reverse. Each step is committed to the state before the next.

An engine that is killed leaves a phase behind; the next one recovers the pages and goes on from that phase. The order
of phases is preparing, prepared, switching, migrating, finalizing, finalized; back: reverting, restoring, retired.
"""

import struct
import time

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import HOOK_KINDS
from podgraft_bundle.protocol import Finalized, Prepared, Reverted, Switched
from podgraft_engine.helper.rpc import is_sealed
from podgraft_engine.hooks.hooks import failed, prepared_by_hook, renew, skip
from podgraft_engine.inspection import Findings, inspect, report
from podgraft_engine.patched.layers import code_of_replaced, lying_below, lying_over
from podgraft_engine.patched.pages import is_intact, pages_of
from podgraft_engine.patched.state import BEFORE_SWITCH, CodeRange, PatchRecord, Phase, all_code, holes_of
from podgraft_engine.prepare import (
    discard,
    links_of,
    prepare,
    release_workspaces,
    reserve_workspace,
)
from podgraft_engine.quiescence import Quiescence
from podgraft_engine.session import Session
from podgraft_engine.steps import Step, reached
from podgraft_engine.target.module import find_module
from podgraft_engine.target.seals import sealed
from podgraft_engine.target.tracer import holds
from podgraft_engine.threads.migration import Tally


class Transition:
    """One engine that changes one process from a phase of a patch to the next."""

    def __init__(self, session: Session, helpers: int = 1) -> None:
        """Take a process that is open. helpers: which attempt this is."""
        self._session = session
        self._target = session.target
        self._helpers = helpers

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
                self._session.show_state()
                record = self._start(bundle, points)
        record.points = sorted({*record.points, *bundle.manifest.points, *points})
        self._session.state.commit()
        tally = self._complete(record)
        self._say_finalized(record, tally)
        self._session.helper.dismiss()

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
            raise Refusal(Reason.NOT_APPLIED, f"process {self._session.process.pid} has no patch named {name}")
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
        self._session.helper.dismiss()

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
        record = self._session.state.document.find(name)
        if record is None:
            raise Refusal(Reason.NOT_APPLIED, f"{name} has gone from the process in the meantime")
        return record

    def _start(self, bundle: Bundle, points: list[str]) -> PatchRecord:
        """Inspect, borrow a carrier, prepare aside, switch the pages: all threads still take old code."""
        findings = inspect(self._target, bundle, points)
        self._session.emit(report(self._target, findings, bundle))
        if findings.problems or findings.module is None:
            raise findings.problems[0]
        if self._session.borrowed is None:
            self._session.try_filters()
            self._session.enter()
        for page in sorted(findings.pages):
            if is_sealed(self._session.helper, page):
                raise sealed(page)
        state = self._session.state
        self._session.hooks.provide(bundle, findings)
        for stale in [p for p in state.document.patches if p.phase in BEFORE_SWITCH]:
            discard(state, self._session.helper, stale)
        record = self._served_before(bundle, findings)
        if record is None:
            record = prepare(self._target, state, self._session.helper, findings, bundle)
        generation = state.document.generation + 1
        borrowed = self._session.borrowed
        self._session.emit(
            Prepared(
                generation=generation,
                carrier=borrowed.carrier if borrowed else None,
                carrier_held_us=borrowed.held_us if borrowed else None,
                area=record.area,
            )
        )
        state.document.generation = record.generation = generation
        state.commit()
        self._open_gate(record, generation, generation + 1)
        self._session.exceptions.announce(record)
        record.served = True
        self._set_phase(record, "switching")
        return record

    def _served_before(self, bundle: Bundle, findings: Findings) -> PatchRecord | None:
        """Return what an earlier apply of the bundle prepared: its code may still be referred to, so it was kept."""
        state = self._session.state
        same = (bundle.digest, links_of(findings))
        record = next((p for p in state.document.patches if p.phase == "retired" and (p.digest, p.links) == same), None)
        if record is None:
            return None
        if not record.workspace_size:
            reserve_workspace(self._target, state, self._session.helper, record)
        record.points, record.replaced = [], findings.replaced
        renew(record, *HOOK_KINDS)
        # Later ones lie over earlier ones.
        state.document.patches.remove(record)
        state.document.patches.append(record)
        self._set_phase(record, "prepared")
        return record

    def _is_intact(self, record: PatchRecord) -> bool:
        return self._target.state is None or is_intact(record, self._target.state.document, self._target.memory)

    def _abandon(self, record: PatchRecord) -> None:
        """Give up a patch whose sites are gone: its module was unloaded, or somebody wrote over them."""
        document = self._session.state.document
        document.pages = [p for p in document.pages if p.live not in pages_of(record)]
        record.links = ""
        self._set_phase(record, "retired")

    def _resume(self, name: str) -> None:
        """Go on in a process that holds our state already."""
        if self._target.block is None or self._target.state is None:
            raise Refusal(Reason.NOT_APPLIED, f"process {self._session.process.pid} has no patch named {name}")
        self._session.enter()

    def _complete(self, record: PatchRecord) -> Tally:
        """From `switching` on: switch, migrate, finalize. Each part is skipped or repeated as the phase demands."""
        if record.phase == "switching":
            self._prepare_data(record)
            switched = self._session.pages.bring(record)
            self._session.emit(Switched(pages=switched, sites=len(record.sites)))
            self._set_phase(record, "migrating")
        tally = Tally()
        if record.phase == "migrating":
            below = [r for p in lying_below(record, self._session.state.document) for r in all_code(p)]
            old = [*record.old, *below]
            tally = Quiescence(self._session, record).migrate([*old, *all_code(record)], record.generation, left=old)
            self._set_phase(record, "finalizing")
        if record.phase == "finalizing":
            self._session.pages.bring(record)
            self._session.hooks.run(record, "post_apply")
            self._replace(record)
            self._set_phase(record, "finalized")
            release_workspaces(self._session.state, self._session.helper)
        return tally

    def _replace(self, record: PatchRecord) -> None:
        """Let the patches go that are replaced, and what they had beyond this one: nobody takes their code any more."""
        dropped = [site for site in record.sites if site.dropped]
        if dropped:
            Quiescence(self._session, record).drain(holes_of(dropped))
            reached(Step.HOLES_DRAINED)
        for patch in [p for p in self._session.state.document.visible() if p.area in record.replaced]:
            patch.complete, patch.phase = False, "retired"
        # From here on a revert leads past them.
        record.complete, record.replaced = True, []
        self._session.state.commit()
        self._session.pages.tidy(pages_of(record))

    def _prepare_data(self, record: PatchRecord) -> None:
        """Ask the hook before the apply; where it says no, nothing has been switched yet, and the patch is put away.

        Raises:
            Refusal: HOOK_REFUSED, HOOK_FAILED, HOOK_CUT_OFF.
        """
        try:
            self._session.hooks.require(record, "pre_apply")
        except Refusal:
            self._reverse(record)
            self._session.helper.dismiss()
            raise

    def _reverse(self, record: PatchRecord) -> Tally:
        """Back to old code: stubs again, a generation that takes the old function, then the pristine pages."""
        state = self._session.state
        if record.phase == "switching":  # nobody has the new generation yet
            self._set_phase(record, "restoring")
        if record.phase in ("migrating", "finalizing", "finalized"):
            self._session.hooks.require(record, "pre_revert")
            # All threads of an unfinished apply lie in [.., generation]; one more is beyond the gate: old code.
            state.document.generation += 1
            self._open_gate(record, record.generation, state.document.generation)
            self._set_phase(record, "reverting")
        tally = Tally()
        if record.phase == "reverting":
            self._session.pages.bring(record)
            code = self._entered(record)
            tally = Quiescence(self._session, record).migrate(
                code, state.document.generation, left=code, reverting=True
            )
            self._set_phase(record, "restoring")
        if record.phase == "restoring":
            self._restore(record)
        return tally

    def _restore(self, record: PatchRecord) -> None:
        """Take the sites away, wait until nobody is in a hole, then the holes and the workspace."""
        self._session.pages.bring(record)
        Quiescence(self._session, record).drain(all_code(record))
        reached(Step.HOLES_DRAINED)
        self._session.pages.tidy(pages_of(record), without=record)
        if prepared_by_hook(record):
            self._session.hooks.run(record, "post_revert")
        record.complete, record.replaced = False, []
        self._set_phase(record, "retired")
        self._session.exceptions.settle()
        release_workspaces(self._session.state, self._session.helper)

    def _entered(self, record: PatchRecord) -> list[CodeRange]:
        """Return the code that threads may have come into by a patch that is reverted."""
        code = all_code(record)
        if not record.complete:
            document = self._session.state.document
            code += code_of_replaced(record, document)
            code += [r for p in lying_below(record, document) for r in all_code(p)]
        return code

    def _open_gate(self, record: PatchRecord, new_from: int, new_until: int) -> None:
        """Threads with a generation in [from, until) take the new function; no choice changes by this write alone."""
        self._target.memory.write(record.gate, struct.pack("<2Q", new_from, new_until))
        reached(Step.GATE_OPENED)

    def _set_phase(self, record: PatchRecord, phase: Phase) -> None:
        record.phase = phase
        self._session.state.commit()

    def _say_finalized(self, record: PatchRecord, tally: Tally) -> None:
        self._session.emit(Finalized.model_validate(self._summary(record, tally)))

    def _say_reverted(self, record: PatchRecord, tally: Tally) -> None:
        self._session.emit(Reverted.model_validate(self._summary(record, tally)))

    def _summary(self, record: PatchRecord, tally: Tally) -> dict[str, object]:
        return {
            "name": record.name,
            "generation": record.generation,
            "threads": len(tally.done) or len(self._session.process.threads()),
            "how": dict(tally.how),
            "helpers": self._helpers,
            "max_held_us": round(holds.longest_us, 1),
            "seconds": round(time.monotonic() - self._session.began, 3),
        }
