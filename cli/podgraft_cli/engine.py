"""Talk to podgraft-engine: one request, then its events as they come."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter

from podgraft_bundle.errors import ExitCode, PodgraftError, Reason
from podgraft_bundle.protocol import Event, Request

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def installed() -> Path | None:
    """Return the engine: the one beside this interpreter, else that of PATH."""
    beside = Path(sys.executable).parent / "podgraft-engine"
    found = None if beside.exists() else shutil.which("podgraft-engine")
    return beside if beside.exists() else Path(found) if found else None


class Engine:
    """One engine process, a context: ask it once, read all events, then exit_code.

    It loads while the caller does other work; one that was never asked is ended with the context. own_session: signals
    of the terminal are for the caller alone.

    Raises:
        PodgraftError: INTERNAL when the engine is not installed or speaks another protocol.
    """

    def __init__(self, *, own_session: bool = False) -> None:
        engine = installed()
        if engine is None:
            raise PodgraftError(Reason.INTERNAL, "podgraft-engine is not installed beside podgraft")
        self._child = subprocess.Popen(
            [engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=own_session
        )
        self._asked = False
        self.exit_code = ExitCode.FAILED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._asked:
            self._child.kill()
        self._child.__exit__(kind, error, trace)

    def ask(self, request: Request) -> Iterator[Event]:
        """Yield the events of a request."""
        child = self._child
        if child.stdin is None or child.stdout is None:
            raise PodgraftError(Reason.INTERNAL, "the engine has no pipes")
        self._asked = True
        with contextlib.suppress(BrokenPipeError):  # one that has ended by itself: its exit code tells
            child.stdin.write(request.model_dump_json().encode())
            child.stdin.close()
        for line in child.stdout:
            yield _EVENTS.validate_json(line)
        if child.wait() not in set(ExitCode):
            raise PodgraftError(Reason.INTERNAL, f"the engine ended with {child.returncode}")
        self.exit_code = ExitCode(child.returncode)
