"""What goes wrong in a data centre, done to the local cluster: programs that die or stand still, cables, power."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hack.cluster import local, processes
from hack.cluster.layout import CONTROL_PLANE, State
from hack.tools import REPOSITORY, ToolFailedError, run

CUT = (("INPUT", "-i"), ("OUTPUT", "-o"), ("FORWARD", "-i"), ("FORWARD", "-o"))


def program(state: State, number: int, name: str) -> int:
    """Return the pid of a program of a machine, such as kube-apiserver of machine 0.

    Raises:
        ToolFailedError: it does not run now.
    """
    for pid in processes.children(local.first_process(state, number)):
        if _name(pid) == name:
            return pid
    raise ToolFailedError(f"{name} does not run on machine {number}")


def in_container(container: str) -> list[int]:
    """Return the processes of a container by the id in their cgroup paths, oldest first; empty when it is gone."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if container in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
    return sorted(found, key=lambda pid: (processes.start_time(pid) or 0, pid))


def kill(pid: int) -> None:
    """End a process at once; that it is gone already is as good."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def standing_still(*pids: int) -> Iterator[None]:
    """Stop processes while the block runs, as a machine without memory or processor time would."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def slow_down(pid: int, seconds: float, *, still: float, between: float) -> None:
    """Let a process stand still again and again for a while. still, between: seconds of each pulse."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with standing_still(pid):
            time.sleep(still)
        time.sleep(between)


@contextmanager
def cut_off(state: State, number: int) -> Iterator[None]:
    """Drop every packet between a machine and all others while the block runs; nobody is told."""
    inside = ("nsenter", f"--net=/proc/{local.first_process(state, number)}/ns/net", "iptables", "--wait")
    try:
        for chain, way in CUT:
            run(*inside, "--insert", chain, way, "eth0", "--jump", "DROP")
        yield
    finally:
        for chain, way in CUT:
            run(*inside, "--delete", chain, way, "eth0", "--jump", "DROP")


def compact(state: State) -> int:
    """Make etcd forget all but the present; returns the revision that it still knows."""
    network = f"--net=/proc/{local.first_process(state, CONTROL_PLANE)}/ns/net"
    return int(run("nsenter", network, sys.executable, "-m", "hack.cluster.etcd", cwd=REPOSITORY))


def _name(pid: int) -> str:
    try:
        return Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])).name
    except (FileNotFoundError, ProcessLookupError):
        return ""
