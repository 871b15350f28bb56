"""On what a result was measured."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe(seed: int, *, quick: bool) -> dict[str, Any]:
    """Return what a reader must know to judge the numbers; load is that of the last minute before the run."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    memory = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:"))
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "processors": os.cpu_count(),
        "memory": f"{memory / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "C library": " ".join(platform.libc_ver()),
        "Python": platform.python_version(),
        "load before": round(os.getloadavg()[0], 2),
        "seed": seed,
        "run": "quick" if quick else "full",
    }


def stolen_seconds() -> float:
    """Return what the hypervisor has taken from all processors since the start of the machine (proc_stat(5), steal)."""
    return _processors()[7]


def busy_seconds() -> float:
    """Return the time that all processors were busy (proc_stat(5): all but idle, iowait and guest times)."""
    times = _processors()
    return sum(times[:3]) + sum(times[5:8])


def _processors() -> list[float]:
    return [int(word) / os.sysconf("SC_CLK_TCK") for word in _lines("/proc/stat")[0].split()[1:]]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
