"""Talk to podgraft-engine: one request, then its events as they come."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter

from podgraft_bundle.errors import ExitCode, PodgraftError, Reason
from podgraft_bundle.protocol import Event, Request

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


def installed() -> Path | None:
    """Return the engine: the one beside this interpreter, else that of PATH."""
    beside = Path(sys.executable).parent / "podgraft-engine"
    found = None if beside.exists() else shutil.which("podgraft-engine")
    return beside if beside.exists() else Path(found) if found else None


class EngineRun:
    """One engine process; iterate over its events, then read exit_code.

    Raises:
        PodgraftError: INTERNAL when the engine is not installed or speaks another protocol.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self.exit_code = ExitCode.FAILED

    def __iter__(self) -> Iterator[Event]:
        engine = installed()
        if engine is None:
            raise PodgraftError(Reason.INTERNAL, "podgraft-engine is not installed beside podgraft")
        with subprocess.Popen([engine], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            if child.stdin is None or child.stdout is None:
                raise PodgraftError(Reason.INTERNAL, "the engine has no pipes")
            child.stdin.write(self._request.model_dump_json().encode())
            child.stdin.close()
            for line in child.stdout:
                yield _EVENTS.validate_json(line)
        if child.returncode not in set(ExitCode):
            raise PodgraftError(Reason.INTERNAL, f"the engine ended with {child.returncode}")
        self.exit_code = ExitCode(child.returncode)
