"""Engines by the hundred: each is a fork of this process, which has imported it, so that a start costs milliseconds."""

import faulthandler
import io
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podgraft_engine import steps
from podgraft_engine.main import main

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """How an engine ended. code: None when it was killed; steps: all that it came to, in order."""

    code: int | None
    events: list[dict[str, Any]]
    steps: list[steps.Step]
    said: str

    @property
    def killed(self) -> bool:
        return self.code is None

    @property
    def last_step(self) -> steps.Step | None:
        return self.steps[-1] if self.steps else None

    @property
    def reason(self) -> str:
        """Why it was refused or failed, empty where it was not."""
        return str(self.events[-1].get("reason", "")) if self.events else ""

    def count(self) -> Counter[steps.Step]:
        return Counter(self.steps)


class Engine:
    """One engine process that runs; end it with `wait`."""

    def __init__(self, folder: Path, *, stop_at: str | None = None, **request: Any) -> None:
        self._trace = folder / f"trace.{os.getpid()}.{time.monotonic_ns()}"
        self._trace.touch()
        self._out, self._err = os.memfd_create("out"), os.memfd_create("err")
        self.pid = os.fork()
        if self.pid == 0:
            self._serve(json.dumps(request).encode(), stop_at)

    def kill_after(self, seconds: float) -> None:
        """Kill it after a while; nothing happens where it has ended."""
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Outcome:
        """Wait for its end.

        Raises:
            TimeoutError: it hangs; it was killed then.
        """
        until = time.monotonic() + PATIENCE_S
        pid, status = 0, 0
        while pid == 0:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            time.sleep(0.0005)
            if pid == 0 and time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"an engine did not end within {PATIENCE_S} s: {self._read(self._err)}")
        said = [self._read(fd) for fd in (self._out, self._err)]
        reached = [steps.Step(number) for number in self._trace.read_bytes()]
        self._trace.unlink()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return Outcome(None, [], reached, said[1])
        events = [json.loads(line) for line in said[0].splitlines()]
        return Outcome(os.waitstatus_to_exitcode(status), events, reached, said[1])

    @staticmethod
    def _read(fd: int) -> str:
        with os.fdopen(fd, "rb") as stream:
            stream.seek(0)
            return stream.read().decode()

    def _serve(self, request: bytes, stop_at: str | None) -> None:
        """Be the engine; never returns."""
        code = 99
        try:
            os.dup2(self._out, 1)
            os.dup2(self._err, 2)
            sys.stdin = io.TextIOWrapper(io.BytesIO(request))
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            faulthandler.dump_traceback_later(PATIENCE_S / 2, file=sys.stderr)
            steps.watch(stop_at, str(self._trace))
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 (nothing of ours may run in the child after the engine)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def run(folder: Path, *, stop_at: str | None = None, **request: Any) -> Outcome:
    """Run an engine to its end, or to the step where it kills itself."""
    return Engine(folder, stop_at=stop_at, **request).wait()
