"""One machine of the cluster, as process 1 of its own mount, pid, network and host name space.

`python3 -m hack.cluster.machine STATE NUMBER` is started by `local.up` through unshare(1). When it is killed, the
kernel ends every process of the machine and drops all its mounts: nothing can be left behind.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from hack.cluster import cgroups, controlplane, network, node
from hack.cluster.layout import CONTROL_PLANE, State, machine_name
from hack.tools import ToolFailedError, main, run, say

CABLE_SECONDS = 30.0
RESTART_SECONDS = 1.0
MOST_EXITS = 5


def boot(state: State, number: int) -> None:
    """Become the machine: mounts, network, programs; returns when one of its programs has ended."""
    socket.sethostname(machine_name(number))
    _mount(state.machine(number))
    _wait_for_cable()
    network.configure(number)
    if number == CONTROL_PLANE:
        programs = controlplane.programs(state)
    else:
        cgroups.make(number)
        programs = node.programs(state, number)
    supervise(programs, state, machine_name(number))


def _mount(private: Path) -> None:
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    # Kubelet, CNI and containerd write below these two, partly under fixed names: each machine has its own.
    for shared in ("/var/lib", "/var/log"):
        own = private / shared.removeprefix("/")
        own.mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", own, shared)


def _wait_for_cable() -> None:
    until = time.monotonic() + CABLE_SECONDS
    while "eth0" not in (name for _, name in socket.if_nameindex()):
        if time.monotonic() > until:
            raise ToolFailedError(f"no eth0 after {CABLE_SECONDS:.0f} s; was `up` ended in the middle?")
        time.sleep(0.02)


def supervise(programs: dict[str, list[str]], state: State, machine: str) -> None:
    """Start the programs, start those that end again, as a service manager would, and bury the dead, as process 1 must.

    Tests kill programs, and a kubelet gives up when containerd, which starts beside it, is late. Returns when one
    ends by itself again and again.
    """
    running: dict[int, str] = {}
    given_up = dict.fromkeys(programs, 0)

    def start(name: str) -> None:
        with (state.logs / f"{machine}-{name}.log").open("a") as log:
            child = subprocess.Popen(programs[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        running[child.pid] = name

    for name in programs:
        start(name)
    while True:
        pid, status = os.wait()
        if pid not in running:
            continue
        name, code = running.pop(pid), os.waitstatus_to_exitcode(status)
        say(f"{name} ended with {code}; it is started again")
        given_up[name] += code >= 0
        if given_up[name] > MOST_EXITS:
            raise ToolFailedError(
                f"{name} on {machine} ended with {code} for the {MOST_EXITS + 1}th time; the machine stops"
            )
        time.sleep(RESTART_SECONDS)
        start(name)


if __name__ == "__main__":
    say(f"machine {sys.argv[2]}")
    main(lambda: boot(State(Path(sys.argv[1])), int(sys.argv[2])))
