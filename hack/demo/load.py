"""What the load generators recorded (examples/redis/load/load.c)."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECORD = np.dtype([("due_us", "<u8"), ("latency_us", "<u4"), ("connection", "<u2"), ("flags", "<u2")])
PERCENTILES = (50.0, 99.0, 99.9)


@dataclass(frozen=True)
class Load:
    """All requests to one server. due: seconds since the epoch; latency: milliseconds; both of shape (requests,)."""

    due: NDArray[np.float64]
    latency: NDArray[np.float64]
    counters: dict[str, Any]

    @classmethod
    def read(cls, records: bytes, summary: str) -> "Load":
        """Read records.bin (cut at its last whole record: the generator still writes) and summary.json."""
        whole = np.frombuffer(records[: len(records) // RECORD.itemsize * RECORD.itemsize], RECORD)
        return cls(whole["due_us"] / 1e6, whole["latency_us"] / 1e3, json.loads(summary))

    def between(self, start: float, end: float) -> NDArray[np.float64]:
        """Return the latencies of the requests that were due in [start, end)."""
        chosen: NDArray[np.float64] = self.latency[(self.due >= start) & (self.due < end)]
        return chosen


@dataclass(frozen=True)
class Latencies:
    """One phase in milliseconds."""

    count: int
    percentiles: tuple[float, ...]
    longest: float


def describe(loads: list[Load], start: float, end: float) -> Latencies:
    """Summarize a phase over all servers; zeros when there was no request in it."""
    values = np.concatenate([load.between(start, end) for load in loads])
    if not values.size:
        return Latencies(0, (0.0,) * len(PERCENTILES), 0.0)
    return Latencies(values.size, tuple(map(float, np.percentile(values, PERCENTILES))), float(values.max()))
