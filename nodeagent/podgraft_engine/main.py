# SPDX-License-Identifier: GPL-2.0-only
"""podgraft-engine: one request as JSON on standard input, events as JSON lines on standard output, then exit."""

import gc
import resource
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ValidationError

from podgraft_bundle.bundle import Bundle, read_bundle
from podgraft_bundle.errors import HINTS, ExitCode, PodgraftError, Reason, Refusal
from podgraft_bundle.protocol import Failed, PatchStatus, Refused, Request, Status
from podgraft_engine.helper.mailbox import HelperLeftError
from podgraft_engine.inspection import inspect, open_target, report
from podgraft_engine.lock import engine_lock
from podgraft_engine.patched.pages import is_intact
from podgraft_engine.patched.state import Document, PatchRecord
from podgraft_engine.session import Session
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process
from podgraft_engine.transition import Transition

MEMORY_LIMIT = 2 * 2**30
MOST_HELPERS = 5
_SHOWN = {
    "switching": "migrating",
    "migrating": "migrating",
    "finalizing": "migrating",
    "finalized": "finalized",
    "reverting": "reverting",
    "restoring": "reverting",
}


def main() -> None:
    """Serve one request; the exit code is the answer in short (ExitCode)."""
    # A collection in the wrong moment would lengthen a hold; one request makes little garbage.
    gc.disable()
    # What lies in a container is not to be trusted: what claims to be huge must not take the node along.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    try:
        request = Request.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        print(f"podgraft-engine: the request on standard input is not valid: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    try:
        code = serve(request)
    except Exception as error:
        # Whoever started us reads events: a bug must not look like silence. The target is safe at every instant.
        emit(Failed(reason=Reason.INTERNAL, detail=f"{type(error).__name__}: {error}", hint=HINTS[Reason.INTERNAL]))
        raise
    sys.exit(code)


def serve(request: Request) -> ExitCode:
    """Do what is asked, emit events, and return the exit code."""
    try:
        if request.file is not None:
            # Not at the start: every other engine would pay for it.
            from podgraft_engine.survey import sites_of  # noqa: PLC0415

            surveyed = sites_of(_bundle(request), Path(request.file))
            emit(surveyed)
            return ExitCode.REFUSED if surveyed.problems else ExitCode.DONE
        process = Process(request.pid, request.start_time)
        if request.op == "status":
            emit(status(process))
            return ExitCode.DONE
        if request.op == "check":
            return check(process, _bundle(request), request.points)
        with engine_lock(request.pid):
            _move(process, request)
    except Refusal as refusal:
        emit(Refused(reason=refusal.reason, detail=refusal.detail, hint=refusal.hint))
        return refusal.exit_code
    except PodgraftError as error:
        emit(Failed(reason=error.reason, detail=error.detail, hint=error.hint))
        return error.exit_code
    return ExitCode.DONE


def _move(process: Process, request: Request) -> None:
    """Apply or revert; where the helper has left for want of commands, go on with another one, until the deadline.

    That is an engine that gets no processor for seconds. All that was done stands in the process.
    """
    bundle = _bundle(request) if request.op == "apply" else None
    deadline = time.monotonic() + request.deadline
    for helpers in range(1, MOST_HELPERS + 1):
        try:
            with Session(process, emit, deadline) as session:
                transition = Transition(session, helpers)
                if bundle is not None:
                    transition.apply(bundle, request.points)
                else:
                    transition.revert(request.name or "", skip_hooks=request.skip_hooks)
        except HelperLeftError:
            if helpers == MOST_HELPERS or time.monotonic() > deadline:
                raise
        else:
            return


def check(process: Process, bundle: Bundle, points: list[str]) -> ExitCode:
    """Emit the patchability report; touches nothing."""
    target = open_target(process)
    findings = inspect(target, bundle, points)
    emit(report(target, findings, bundle))
    return ExitCode.REFUSED if findings.problems else ExitCode.DONE


def status(process: Process) -> Status:
    """Read what is in the process, from the process."""
    target = open_target(process)
    document = target.state.document if target.state else Document()
    slots = target.block.slots() if target.block else {}
    mailbox = slots.get("mailbox", 0)
    return Status(
        pid=process.pid,
        generation=document.generation,
        helper=any(m.start == mailbox for m in process.maps()) if mailbox else False,
        patches=[
            PatchStatus.model_validate(
                {
                    "name": p.name,
                    "version": p.version,
                    "digest": p.digest,
                    "phase": _shown(p, document, target.memory),
                    "generation": p.generation,
                    "functions": [s.function for s in p.sites if not s.dropped],
                    "cves": p.cves,
                }
            )
            for p in document.visible()
        ],
    )


def emit(event: BaseModel) -> None:
    """Write one event as a line."""
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()


def _bundle(request: Request) -> Bundle:
    if request.bundle is None:
        raise Refusal(Reason.BUNDLE_MALFORMED, "the request names no bundle")
    return read_bundle(Path(request.bundle))


def _shown(patch: PatchRecord, document: Document, memory: Memory) -> str:
    """Say what a record means to users; a patch whose jumps have gone is `lost`."""
    if patch.phase == "finalized" and not is_intact(patch, document, memory):
        return "lost"
    return _SHOWN[patch.phase]
