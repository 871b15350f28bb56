"""A typed client of the engine protocol: one child for one request, its events as they come, its exit code."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from podgraft_bundle.errors import HINTS, ExitCode, Reason
from podgraft_bundle.protocol import Event, Failed, Refused, Request

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
# The engine keeps its own deadline for threads; the rest of its work takes far less than this.
GRACE_SECONDS = 60.0
LINE_BYTES = 4 * 2**20
STDERR_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    """How a request ended. trouble: what the engine said against it, or what we say of an engine that broke."""

    code: ExitCode
    trouble: Refused | Failed | None = None


async def run_engine(command: str, request: Request, on_event: Callable[[Event], None]) -> Outcome:
    """Run one engine child; a cancelled call kills it, which it is made to survive."""
    child = await asyncio.create_subprocess_exec(
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    try:
        async with asyncio.timeout(request.deadline + GRACE_SECONDS):
            return await _converse(child, request, on_event)
    except TimeoutError:
        return _broken(f"the engine did not end within {request.deadline + GRACE_SECONDS:.0f} s")
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


async def _converse(child: asyncio.subprocess.Process, request: Request, on_event: Callable[[Event], None]) -> Outcome:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise ValueError("the child was started with pipes")
    errors = asyncio.create_task(_tail(child.stderr))
    try:
        # A child that dies at once closes the pipe; its exit code says more than the error here.
        with contextlib.suppress(ConnectionError):
            child.stdin.write(request.model_dump_json().encode())
            await child.stdin.drain()
        child.stdin.close()
        trouble: Refused | Failed | None = None
        async for line in child.stdout:
            try:
                event = EVENT.validate_json(line)
            except ValidationError:
                return _broken(f"the engine wrote no event: {line[:200]!r}")
            if isinstance(event, Refused | Failed):
                trouble = event
            on_event(event)
        code = await child.wait()
        return _outcome(code, trouble, await errors)
    finally:
        errors.cancel()


def _outcome(code: int, trouble: Refused | Failed | None, errors: str) -> Outcome:
    known = code in {one.value for one in ExitCode}
    if not known or (code in {ExitCode.FAILED, ExitCode.USAGE, ExitCode.REFUSED} and trouble is None):
        return _broken(f"the engine ended with {code}: {errors}")
    return Outcome(ExitCode(code), trouble)


def _broken(detail: str) -> Outcome:
    return Outcome(ExitCode.FAILED, Failed(reason=Reason.INTERNAL, detail=detail, hint=HINTS[Reason.INTERNAL]))


async def _tail(stream: asyncio.StreamReader) -> str:
    """Read to the end, for a full pipe would stop the child, and keep the last lines."""
    kept = b""
    while chunk := await stream.read(65536):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept.decode("utf-8", "replace").strip()
