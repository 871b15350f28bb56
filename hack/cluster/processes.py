"""Processes that outlive the command that started them: recorded by themselves, ended by record and start time."""

import contextlib
import json
import os
import select
import signal
import subprocess
from pathlib import Path

from hack.tools import ToolFailedError


def start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat (ticks since boot), None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold blanks and parentheses itself; what follows its last one is regular.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(command: list[str], record: Path, log: Path, environment: dict[str, str]) -> int:
    """Start a process in a session of its own and return its pid.

    The child writes the record itself before it becomes the command: were it the parent, a parent killed at the
    wrong moment would leave a process that nobody knows.
    """

    def write_record() -> None:
        own = os.getpid()
        record.write_text(json.dumps({"pid": own, "start_time": start_time(own)}))

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=environment,
            preexec_fn=write_record,  # noqa: PLW1509 # no other thread of ours holds a lock here
        )
    return child.pid


def recorded(record: Path) -> int | None:
    """Return the pid of a recorded process that still runs, None for one that is gone or was never there."""
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return known["pid"] if start_time(known["pid"]) == known["start_time"] else None


def children(pid: int) -> list[int]:
    """Return the pids of a process's children; empty when it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def kill(record: Path, seconds: float = 30.0) -> bool:
    """Kill a recorded process and wait until it and its direct children are gone; False when there was none.

    Raises:
        ToolFailedError: it did not go away in time.
    """
    pid = recorded(record)
    if pid is None:
        record.unlink(missing_ok=True)
        return False
    family = [(one, os.pidfd_open(one)) for one in (pid, *children(pid)) if start_time(one) is not None]
    try:
        # The pid was ours a moment ago; now that a descriptor pins it, make sure that it still was. A child that has
        # only just been forked may not have asked the kernel yet to end together with its parent.
        ours = recorded(record) == pid
        for one, descriptor in family:
            if ours:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if not select.select([descriptor], [], [], seconds)[0]:
                raise ToolFailedError(f"process {one} survives SIGKILL for {seconds:.0f} s")
    finally:
        for _, descriptor in family:
            os.close(descriptor)
    record.unlink(missing_ok=True)
    return True
