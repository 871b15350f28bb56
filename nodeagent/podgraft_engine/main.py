# SPDX-License-Identifier: GPL-2.0-only
"""podgraft-engine: one request as JSON on standard input, events as JSON lines on standard output, then exit."""

import gc
import resource
import sys
from pathlib import Path

from pydantic import BaseModel, ValidationError

from podgraft_bundle.bundle import Bundle, read_bundle
from podgraft_bundle.errors import HINTS, ExitCode, PodgraftError, Reason, Refusal
from podgraft_bundle.protocol import Failed, PatchStatus, Refused, Request, Status
from podgraft_engine.inspection import inspect, open_target, report
from podgraft_engine.lock import engine_lock
from podgraft_engine.patched.pages import is_intact
from podgraft_engine.patched.state import BEFORE_SWITCH, PatchRecord
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process
from podgraft_engine.transition import Transition

MEMORY_LIMIT = 2 * 2**30
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
        process = Process(request.pid, request.start_time)
        if request.op == "status":
            emit(status(process))
            return ExitCode.DONE
        if request.op == "check":
            return check(process, _bundle(request), request.points)
        bundle = _bundle(request) if request.op == "apply" else None
        with engine_lock(request.pid), Transition(process, emit, request.deadline) as transition:
            if bundle is not None:
                transition.apply(bundle, request.points)
            else:
                transition.revert(request.name or "", skip_hooks=request.skip_hooks)
    except Refusal as refusal:
        emit(Refused(reason=refusal.reason, detail=refusal.detail, hint=refusal.hint))
        return refusal.exit_code
    except PodgraftError as error:
        emit(Failed(reason=error.reason, detail=error.detail, hint=error.hint))
        return error.exit_code
    return ExitCode.DONE


def check(process: Process, bundle: Bundle, points: list[str]) -> ExitCode:
    """Emit the patchability report; touches nothing."""
    target = open_target(process)
    findings = inspect(target, bundle, points)
    emit(report(target, findings, bundle))
    return ExitCode.REFUSED if findings.problems else ExitCode.DONE


def status(process: Process) -> Status:
    """Read what is in the process, from the process."""
    target = open_target(process)
    document = target.state.document if target.state else None
    slots = target.block.slots() if target.block else {}
    mailbox = slots.get("mailbox", 0)
    return Status(
        pid=process.pid,
        generation=document.generation if document else 0,
        helper=any(m.start == mailbox for m in process.maps()) if mailbox else False,
        patches=[
            PatchStatus.model_validate(
                {
                    "name": p.name,
                    "version": p.version,
                    "digest": p.digest,
                    "phase": _shown(p, target.memory),
                    "generation": p.generation,
                    "functions": [s.function for s in p.sites],
                    "cves": p.cves,
                }
            )
            for p in (document.patches if document else [])
            if p.phase not in ("retired", *BEFORE_SWITCH)
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


def _shown(patch: PatchRecord, memory: Memory) -> str:
    """Say what a record means to users; a patch whose jumps have gone is `lost`."""
    if patch.phase == "finalized" and not is_intact(patch, memory):
        return "lost"
    return _SHOWN[patch.phase]
