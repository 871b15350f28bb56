"""What a phase cost: requests as the API server counts them, writes as etcd does, processor time of each program."""

import os
import re
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from apiserver import Api, trust

from bench.machine import busy_seconds
from podgraft_kube.client import Json

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
TICKS = os.sysconf("SC_CLK_TCK")
Sample = tuple[Mapping[str, str], float]


def samples(text: str, name: str) -> Iterator[Sample]:
    """Yield labels and value of each sample of one metric."""
    for line in text.splitlines():
        found = _SAMPLE.match(line) if line.startswith(name) else None
        if found is not None and found[1] == name:
            yield dict(_LABEL.findall(found[2] or "")), float(found[3])


def total(text: str, name: str, **labels: str) -> float:
    """Return the sum over the samples that have these labels."""
    return sum(value for there, value in samples(text, name) if labels.items() <= there.items())


def read(url: str, api: Api | None = None) -> str:
    """Return what a program says under /metrics, with the rights of `api` if it is the API server."""
    headers = {"Authorization": f"Bearer {api.token}"} if api is not None else {}
    request = urllib.request.Request(f"{url}/metrics", headers=headers)  # noqa: S310 - a program of ours
    context = trust(api.ca) if api is not None else None
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310 - the same
        text: str = answer.read().decode()
        return text


def watches(api: Api, resource: str) -> int:
    """Return how many watches of a resource the API server serves now."""
    return int(total(read(api.url, api), "apiserver_longrunning_requests", resource=resource, verb="WATCH"))


def requests(text: str) -> Counter[str]:
    """Return how often each kind of request was made: verb and resource; watches are counted at their end."""
    found: Counter[str] = Counter()
    for labels, value in samples(text, "apiserver_request_total"):
        part = f"/{labels['subresource']}" if labels.get("subresource") else ""
        refused = f" ({labels['code']})" if labels["code"] >= "400" else ""
        found[f"{labels['verb']} {labels['resource']}{part}{refused}"] += int(value)
    return found


def processor_seconds(pid: int) -> float:
    """Return user and system time of a process (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_mib(pid: int) -> float:
    """Return the most memory that a process has had resident (VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def servers() -> dict[str, int]:
    """Return the pids of the etcd and kube-apiserver that this process has started."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text(errors="replace").partition("(")[2].rpartition(")")
        except OSError:
            continue  # it ended while we looked
        if name in {"etcd", "kube-apiserver"} and int(rest.split()[1]) == os.getpid():
            found[name] = int(stat.parent.name)
    return found


@dataclass
class Meter:
    """One phase. programs: name -> pids; processes may come and go (`ends`)."""

    api: Api
    programs: dict[str, list[int]]
    result: Json = field(default_factory=dict)
    _spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def phase(self) -> Iterator[Json]:
        """Measure a block; what it cost is in the answer afterwards."""
        before, stored = requests(read(self.api.url, self.api)), read(self.api.store)
        used, busy = self._used(), busy_seconds()
        began = time.monotonic()
        yield self.result
        seconds = time.monotonic() - began
        busy = busy_seconds() - busy
        spent = {name: value - used.get(name, 0.0) for name, value in self._used().items()}
        made = requests(read(self.api.url, self.api)) - before
        now = read(self.api.store)
        self.result |= {
            "seconds": round(seconds, 1),
            "requests": dict(sorted(made.items())),
            "etcd puts": int(_grown(stored, now, "etcd_mvcc_put_total")),
            "etcd MiB": round(_grown(stored, now, "etcd_disk_wal_write_bytes_total") / 2**20, 2),
            "cpu seconds": {name: round(value, 1) for name, value in spent.items()},
            "others cpu seconds": round(max(0.0, busy - sum(spent.values())), 1),
            "load": round(os.getloadavg()[0], 1),
        }

    def ends(self, pid: int) -> None:
        """Keep in mind what a process has used that is about to end."""
        name = next(name for name, pids in self.programs.items() if pid in pids)
        self._spent[name] += processor_seconds(pid)
        self.programs[name].remove(pid)

    def _used(self) -> dict[str, float]:
        return {name: self._spent[name] + sum(map(processor_seconds, pids)) for name, pids in self.programs.items()}


def _grown(before: str, after: str, name: str) -> float:
    return total(after, name) - total(before, name)
