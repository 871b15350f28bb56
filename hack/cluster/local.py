"""The local cluster: machine 0 with the control plane and three nodes, made from namespaces."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from hack.cluster import binaries, cgroups, network, pki, processes
from hack.cluster.layout import MACHINES, NODES, POINTER, State, machine_name
from hack.tools import REPOSITORY, ToolFailedError, lock, say, step

START_SECONDS = 120.0
MACHINE = ("unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--kill-child")


def up() -> State:
    """Bring the cluster up, or do nothing when it is; remains of an earlier attempt are removed first.

    Raises:
        ToolFailedError: something did not start; the logs stay in the state folder.
    """
    state = State.default()
    if os.geteuid() != 0:
        raise ToolFailedError("a cluster made from namespaces needs root")
    binaries.ensure()
    with lock("cluster"):
        if is_up(state):
            say("  ✓ the cluster is up already")
            return state
        _remove(state)
        with step("keys and certificates"):
            state.logs.mkdir(parents=True)
            POINTER.symlink_to(state.root)
            pki.make(state)
        with step("control plane and three nodes"):
            network.make_bridge()
            for number in MACHINES:
                _start(state, number)
            _wait("the API server", state, lambda: _kubectl(state, "get", "--raw", "/readyz") == "ok")
            _wait("three Ready nodes", state, lambda: _ready_nodes(state) == len(NODES))
            _wait("the default service account", state, lambda: bool(_kubectl(state, "get", "serviceaccount/default")))
    return state


def down() -> None:
    """Remove the cluster, however much of it there is; the logs stay."""
    with lock("cluster"), step("remove the cluster"):
        _remove(State.default(), keep_logs=True)


def is_up(state: State) -> bool:
    """Tell whether all machines run and three nodes are Ready."""
    alive = all(processes.recorded(state.record(number)) for number in MACHINES)
    return alive and _ready_nodes(state) == len(NODES)


def switch_off(state: State, number: int) -> None:
    """End a machine at once with all that runs on it, as a power cut does; its disk stays."""
    with lock("cluster"):
        processes.kill(state.record(number))
        network.unplug(number)


def switch_on(state: State, number: int) -> None:
    """Start a machine that was switched off; a node is Ready some seconds later.

    Raises:
        ToolFailedError: it does not start.
    """
    with lock("cluster"):
        _start(state, number)


def first_process(state: State, number: int) -> int:
    """Return the pid, as the host sees it, of a machine's process 1.

    Raises:
        ToolFailedError: the machine does not run.
    """
    outer = processes.recorded(state.record(number))
    inner = processes.children(outer) if outer else []
    if not inner:
        raise ToolFailedError(f"{machine_name(number)} does not run; `make cluster-up` starts the cluster")
    return inner[0]


def containerd_socket(state: State, number: int) -> str:
    """Return a path of the node's containerd socket that the host can open.

    Raises:
        ToolFailedError: the node does not run.
    """
    return f"/proc/{first_process(state, number)}/root/run/containerd/containerd.sock"


def _start(state: State, number: int) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [*MACHINE, sys.executable, "-m", "hack.cluster.machine", str(state.root), str(number)]
    outer = processes.spawn(command, state.record(number), state.logs / f"{machine_name(number)}.log", environment)
    _wait("a namespace", state, lambda: any(map(network.is_own_namespace, processes.children(outer))), pause=0.02)
    network.plug_in(number, processes.children(outer)[0])


def _wait(what: str, state: State, done: Callable[[], bool], pause: float = 0.25) -> None:
    until = time.monotonic() + START_SECONDS
    while not done():
        for number in MACHINES:
            if state.record(number).exists() and processes.recorded(state.record(number)) is None:
                log = state.logs / f"{machine_name(number)}.log"
                raise ToolFailedError(
                    f"{machine_name(number)} has ended: {log.read_text()[-500:]}\n  logs: {state.logs}"
                )
        if time.monotonic() > until:
            raise ToolFailedError(f"no {what} after {START_SECONDS:.0f} s; logs: {state.logs}")
        time.sleep(pause)


def _kubectl(state: State, *arguments: str) -> str:
    command = [str(binaries.folder() / "kubectl"), f"--kubeconfig={state.admin}", "--request-timeout=5s", *arguments]
    # Not run(): until the API server is up, failing is what it does.
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _ready_nodes(state: State) -> int:
    path = '{range .items[*].status.conditions[?(@.type=="Ready")]}{.status}{"\\n"}{end}'
    return _kubectl(state, "get", "nodes", "-o", f"jsonpath={path}").split().count("True")


def _remove(state: State, *, keep_logs: bool = False) -> None:
    for number in MACHINES:
        processes.kill(state.record(number))
    network.remove()
    cgroups.remove()
    POINTER.unlink(missing_ok=True)
    if state.root.exists():
        for entry in state.root.iterdir():
            if entry.is_dir() and not (keep_logs and entry == state.logs):
                shutil.rmtree(entry)
            elif entry.is_file():
                entry.unlink()
