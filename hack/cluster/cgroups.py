"""A folder of its own for each node in every cgroup hierarchy, so that kubelets on one kernel do not meet."""

import time
from pathlib import Path

from hack.cluster.layout import NODES, cgroup
from hack.tools import ToolFailedError

V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


def hierarchies() -> list[Path]:
    """Return the mount points of all cgroup hierarchies, v1 and v2."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(where) for _, where, kind, *_ in mounts if kind in {"cgroup", "cgroup2"}]


def make(number: int) -> None:
    """Make the folders of one node, ready for a kubelet with `cgroupRoot`."""
    for hierarchy in hierarchies():
        folder = hierarchy / cgroup(number)
        folder.mkdir(exist_ok=True)
        if (hierarchy / "cgroup.controllers").exists():
            _hand_down(hierarchy)
            _hand_down(folder)
        # A v1 cpuset is born empty, and nothing can run in it until it has CPUs and memory nodes.
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (hierarchy / file).exists() and not (hierarchy / "cgroup.controllers").exists():
                (folder / file).write_text((hierarchy / file).read_text())


def _hand_down(folder: Path) -> None:
    """Give a v2 folder's controllers to its children, those that it has itself."""
    there = set((folder / "cgroup.controllers").read_text().split())
    for controller in sorted(there.intersection(V2_CONTROLLERS)):
        (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def remove(seconds: float = 20.0) -> None:
    """Remove the folders of all nodes; their processes are gone, the kernel lets go of them a moment later.

    Raises:
        ToolFailedError: a folder is still in use after that time.
    """
    until = time.monotonic() + seconds
    while left := [folder for node in NODES for top in hierarchies() if (folder := top / cgroup(node)).exists()]:
        for top in left:
            folders = [top, *(path for path in top.rglob("*") if path.is_dir())]
            for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
                try:
                    folder.rmdir()
                except OSError:
                    break  # Busy for a moment longer; the loop comes back to it.
        if time.monotonic() > until:
            raise ToolFailedError(f"cgroup folders are still in use: {', '.join(map(str, left))}")
        time.sleep(0.1)
