# SPDX-License-Identifier: GPL-2.0-only
"""How much memory the process's control groups still allow it: what we write there counts, and too much of it kills.

The files of a group are found through our own mounts of the hierarchy or, as seen from a container, through those of
the process (cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from podgraft_engine.target.proc import Process

# v1 has a huge number where no limit is set.
_NO_LIMIT: Final = 2**60
# limit, use; the names in memory.stat of what the kernel gives up before it kills.
_V2: Final = ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable"))
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def headroom(process: Process) -> int | None:
    """Return how many bytes the process may still use before the kernel kills in its group; None without a limit."""
    rooms = [room_of(group, *names) for group, names in _groups(process)]
    return min((room for room in rooms if room is not None), default=None)


def _groups(process: Process) -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """Yield the folder of each group that limits the process's memory, up to the highest one that can be seen."""
    for line in _read(process.root / "cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        unified = number == "0"
        if not unified and "memory" not in controllers.split(","):
            continue
        for root, mounts in ((Path("/"), Path("/proc/self")), (process.root / "root", process.root)):
            found = place_in(_read(mounts / "mountinfo"), path, unified=unified)
            if found is not None and (root / found[0] / found[1]).is_dir():
                mount, below = found
                yield from ((root / mount / group, _V2 if unified else _V1) for group in (below, *below.parents))
                break


def place_in(mountinfo: str, path: str, *, unified: bool) -> tuple[str, Path] | None:
    """Return where a hierarchy is mounted that shows a group (without the first slash), and the group's place below."""
    for line in mountinfo.splitlines():
        fields, _, kind = line.partition(" - ")
        kind_name, _, options = kind.split(" ", 2)
        if kind_name != ("cgroup2" if unified else "cgroup"):
            continue
        if not unified and "memory" not in options.split(","):
            continue
        top, mount = fields.split(" ")[3:5]
        with suppress(ValueError):
            below = Path(path).relative_to(top)
            if ".." not in below.parts:  # beyond the name space of control groups that we are in
                return mount.lstrip("/"), below
    return None


def room_of(group: Path, limit_file: str, use_file: str, reclaimed: tuple[str, ...]) -> int | None:
    """Return what one group still allows, in bytes; None without a limit."""
    limit, use = _read(group / limit_file).strip(), _read(group / use_file).strip()
    if not limit.isdigit() or not use.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    stat = dict(line.split(" ", 1) for line in _read(group / "memory.stat").splitlines())
    return int(limit) - int(use) + sum(int(stat.get(name, 0)) for name in reclaimed)


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace")
    return ""
