"""Clocks of operator and agents that a test can set: libfaketime, preloaded into their containers.

The time of day is one for the whole kernel (time namespaces cover the monotonic clock alone), and other programs of the
machine need theirs. The engine runs without it: it never asks for the time of day, and libfaketime breaks syscall(2).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.layout import NODES, State
from hack.fleet.system import System
from hack.fleet.waiting import until

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
FOLDER = "faketime"
ENGINE = "#!/bin/sh\nunset LD_PRELOAD\nexec podgraft-engine\n"
WORKLOADS = {"operator": "deployment/podgraft-operator", "agent": "daemonset/podgraft-agent"}


def set_to(offset: str) -> None:
    """Set the clocks, as libfaketime writes offsets: `+2h` from the true time, `+0`."""
    for node in NODES:
        (_folder(node) / "offset").write_text(f"{offset}\n")


@contextmanager
def settable(system: System, offset: str) -> Iterator[None]:
    """Start operator and agents anew with clocks that `set_to` sets, and with their own when the block ends."""
    for node in NODES:
        _folder(node).mkdir(parents=True, exist_ok=True)
        shutil.copy(LIBRARY, _folder(node))
        (_folder(node) / "engine").write_text(ENGINE)
        (_folder(node) / "engine").chmod(0o755)
    set_to(offset)
    for name, workload in WORKLOADS.items():
        system.kubectl.run("patch", workload, "-p", json.dumps(_preload(name)))
    try:
        _wait(system)
        yield
    finally:
        for workload in WORKLOADS.values():
            system.kubectl.run("rollout", "undo", workload)
        _wait(system)


def _wait(system: System) -> None:
    for workload in WORKLOADS.values():
        system.kubectl.run("rollout", "status", workload, "--timeout=180s")
    until("operator and agents", lambda: system.is_whole(len(NODES)))


def _folder(node: int) -> Path:
    return State.default().machine(node) / "var" / "log" / FOLDER


def _preload(container: str) -> dict[str, object]:
    environment = {
        "LD_PRELOAD": f"/{FOLDER}/{LIBRARY.name}",
        "FAKETIME_TIMESTAMP_FILE": f"/{FOLDER}/offset",
        "FAKETIME_NO_CACHE": "1",
        # What a machine's administrator can set is the time of day; the monotonic clock goes on.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PODGRAFT_ENGINE": f"/{FOLDER}/engine",
    }
    one = {
        "name": container,
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "volumeMounts": [{"name": FOLDER, "mountPath": f"/{FOLDER}", "readOnly": True}],
    }
    volume = {"name": FOLDER, "hostPath": {"path": f"/var/log/{FOLDER}"}}
    return {"spec": {"template": {"spec": {"containers": [one], "volumes": [volume]}}}}
