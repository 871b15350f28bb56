"""From containers to the processes in them that run the patched build."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from podgraft_agent.cgroup import container_ids
from podgraft_agent.modules import ModuleReader, start_time


@dataclass(frozen=True)
class Found:
    """A process that maps the module, guarded by start time; vdso differs after an exec."""

    pid: int
    start_time: int
    vdso: int


@dataclass(frozen=True)
class Sight:
    """What one look through the node showed. seen: the wanted containers that have any process at all."""

    running: Mapping[tuple[str, str], list[Found]]
    seen: frozenset[str]


class Finder:
    """Looks through the host's /proc; costs one small file for each process of the node."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._modules = ModuleReader(proc)

    def processes(self, wanted: Iterable[str]) -> dict[str, list[int]]:
        """Return container id -> pids, for the wanted containers that have any."""
        ids = set(wanted)
        found: dict[str, list[int]] = defaultdict(list)
        for entry in self._proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                text = (entry / "cgroup").read_text("utf-8", "replace")
            except OSError:
                continue  # it ended while we looked
            for one in container_ids(text) & ids:
                found[one].append(int(entry.name))
        return found

    def look(self, wanted: Mapping[str, set[str]]) -> Sight:
        """Return (container id, build id) -> processes that map that build, and which containers are there at all.

        Args:
            wanted: container id -> build ids.
        """
        result: dict[tuple[str, str], list[Found]] = defaultdict(list)
        self._modules.forget_beyond(10_000)
        there = self.processes(wanted)
        for container, pids in there.items():
            for pid in sorted(pids):
                began = 0
                try:
                    began = start_time(self._proc, pid)
                    modules = self._modules.read(pid)
                    if start_time(self._proc, pid) != began:
                        continue
                except PermissionError:
                    # Not "nothing to patch": the engine will be refused as well, and says so with the reason.
                    for build_id in wanted[container]:
                        result[container, build_id].append(Found(pid, began, 0))
                    continue
                except OSError:
                    continue  # it ended while we looked; or a zombie, which maps nothing
                for build_id in wanted[container] & modules.build_ids:
                    result[container, build_id].append(Found(pid, began, modules.vdso))
        return Sight(result, frozenset(there))
