"""What do the clients of a server under steady load notice: of a patch, of a barrier, of a restart?

The load is open-loop: a request's latency counts from the moment it was due. One run, in rounds; each round has the
same intervals in an order drawn anew: nothing (twice: what differs between the two is noise), two engines that only
check, two barriers, one apply and one revert. The restarts come last. On a virtual machine the hypervisor takes
processors away for milliseconds, which is most of what a high percentile over everything shows; so beside it stand the
middle of the p99.9 of single intervals, and p99.9 over the calm ones, in which less than 0.1 % was taken.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import Options, build_barrier, engine, goal, markdown, percentiles, stop_all
from bench.machine import stolen_seconds
from bench.pictures import figure, save
from bench.served import SERVED, Served
from bench.server import CONNECTIONS, RATE, Server

KINDS = ("quiet", "quiet again", "check", "patch", "barrier")
COLORS = dict(zip((*KINDS, "restart"), ("#8794a1", "#c3cbd3", "#e9a13b", "#2a9d8f", "#c0392b", "#7a5fa5"), strict=True))
INTERVAL_S = 2.0
CYCLES, QUICK_CYCLES, RESTARTS = 200, 3, 3
WARM_UP_S = 2.0
HOLD_US = 50
SHOWN = (50.0, 99.0, 99.9, 99.99, 100.0)
CURVE = 100 - np.logspace(2, -2.3, 120)
WORST_RATIO, MOST_HELD_US = 1.05, 100.0
RESAMPLES = 500
CALM = 0.001

Latencies = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """One interval: its kind, when it was (time.time), and how long the hypervisor had processors of it (seconds)."""

    kind: str
    start: float
    end: float
    stolen: float

    @property
    def offered(self) -> float:
        """Return the processor time that there was (seconds)."""
        return (self.end - self.start) * (os.cpu_count() or 1)

    def has(self, times: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which of some times (seconds) lie in it."""
        return (times >= self.start) & (times < self.end)

    @property
    def calm(self) -> bool:
        """Tell whether what was taken is too little to show at p99.9; of 2 s on two processors not one tick."""
        return self.stolen < CALM * self.offered


class Run:
    """The intervals of one run, and what was seen of the threads in them."""

    def __init__(self, server: Server, served: Served, barrier: Path) -> None:
        self.server = server
        self.ways: Counter[str] = Counter()
        self.intervals: list[Interval] = []
        self.held: list[float] = []
        self.took: list[float] = []
        self.stops: list[float] = []
        self._served = served
        self._barrier = barrier

    def interval(self, kind: str, action: Callable[[], None] | None) -> None:
        """Let an interval of a kind pass; it is longer than the others only if its action is."""
        began, until, stolen = time.time(), time.monotonic() + INTERVAL_S, stolen_seconds()
        if action is not None:
            action()
        time.sleep(max(until - time.monotonic(), 0))
        self.intervals.append(Interval(kind, began, time.time(), stolen_seconds() - stolen))

    def check(self) -> None:
        """Start as many engines that touch nothing: what they cost the machine is in `patch` as well."""
        for pid in self.server.pids * 2:
            engine(pid, op="check", bundle=self._served.bundle)

    def patch(self) -> None:
        """Apply and revert."""
        began = time.monotonic()
        answers = [engine(pid, op="apply", bundle=self._served.bundle) for pid in self.server.pids]
        answers += [engine(pid, op="revert", name=self._served.name) for pid in self.server.pids]
        self.took.append(time.monotonic() - began)
        for answer in answers:
            self.held += answer.holds_us()
            self.ways.update(event["how"] for event in answer.of("migrated"))

    def stop_all(self) -> None:
        """Two barriers, for apply and for revert."""
        for _ in range(2):
            for pid in self.server.pids:
                self.stops.append(stop_all(self._barrier, pid, HOLD_US)["total_ns"] / 1e3)
            time.sleep(INTERVAL_S / 3)


class Latency:
    """The benchmark of one server."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.__doc__ = f"{program}: {__doc__}"

    def run(self, options: Options) -> dict[str, Any]:
        """Measure all kinds of intervals in one run."""
        cycles = options.cycles or (QUICK_CYCLES if options.quick else CYCLES)
        served, barrier = SERVED[self.program](options.work), build_barrier(options.work)
        order = random.Random(options.seed)  # noqa: S311 (a schedule that can be repeated)
        with ExitStack() as stack:
            this = Run(Server(stack, served, options.work), served, barrier)
            actions = {"check": this.check, "patch": this.patch, "barrier": this.stop_all}
            time.sleep(WARM_UP_S)
            this.patch()
            for seen in (this.held, this.took, this.ways):
                seen.clear()
            for _ in range(cycles):
                for kind in order.sample(KINDS, len(KINDS)):
                    this.interval(kind, actions.get(kind))
            for _ in range(RESTARTS):
                this.interval("restart", this.server.restart)
            time.sleep(1)
            records = this.server.records()
        return {
            "cycles": cycles,
            "rate": CONNECTIONS * RATE,
            **summarize(records, this.intervals, options.seed),
            "held_us": percentiles(this.held),
            "ways": dict(sorted(this.ways.items())),
            "patch_s": percentiles(this.took),
            "barrier_us": percentiles(this.stops),
        }

    def table(self, result: dict[str, Any]) -> str:
        """Return the results as Markdown."""
        return _table(result)

    def plot(self, result: dict[str, Any], folder: Path) -> list[Path]:
        """Draw latency by percentile for all kinds."""
        drawing, (axes,) = figure(f"{self.program} under open-loop load", 1)
        for kind, values in result["kinds"].items():
            axes.loglog(100 / (100 - CURVE), values["curve"], label=kind, color=COLORS[kind], linewidth=1.4)
        axes.set_xticks([1, 10, 100, 1000, 10000], ["0", "p90", "p99", "p99.9", "p99.99"])
        axes.set(xlabel="percentile", ylabel="latency from the moment due (ms)")
        return save(drawing, folder / f"latency-{self.program}")


def charged(records: "NDArray[Any]", interval_us: int) -> tuple[NDArray[np.int64], Latencies]:
    """Return when requests were due (µs) and their latencies (ms), with those that a broken connection kept back.

    The generator sends nothing while it reconnects. Each request that was due meanwhile, and the one that was lost, is
    charged with the time until the connection was back: one interval before the first request of the new connection.
    """
    dues: list[NDArray[np.int64]] = []
    latencies: list[Latencies] = []
    for connection in np.unique(records["connection"]):
        mine = records[records["connection"] == connection]
        back_at = np.flatnonzero(mine["flags"] & 2)
        for at in back_at:
            back = int(mine["due_us"][at]) - interval_us
            missed = np.arange(int(mine["due_us"][at - 1]), back, interval_us)
            dues.append(missed)
            latencies.append((back - missed) / 1e3)
        answered = np.delete(mine, back_at - 1)
        dues.append(answered["due_us"].astype(np.int64))
        latencies.append(answered["latency_us"] / 1e3)
    return np.concatenate(dues), np.concatenate(latencies)


def summarize(records: "NDArray[Any]", intervals: list[Interval], seed: int) -> dict[str, Any]:
    """Return percentiles by kind of interval, in ms, and the spread of the ratios over rounds."""
    due, latency = charged(records, 1_000_000 // RATE)
    lost = records["due_us"][records["flags"] & 1 != 0] / 1e6
    groups: dict[str, list[Latencies]] = {}
    kinds: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(one.kind for one in intervals):
        these = [one for one in intervals if one.kind == kind]
        values = [latency[one.has(due / 1e6)] for one in these]
        calm = [value for value, one in zip(values, these, strict=True) if one.calm]
        groups[kind], everything = values, np.concatenate(values)
        kinds[kind] = {
            "requests": everything.size,
            "failed": sum(int(np.count_nonzero(one.has(lost))) for one in these),
            "shown": [round(float(value), 4) for value in np.percentile(everything, SHOWN)],
            "curve": [round(float(value), 4) for value in np.percentile(everything, CURVE)],
            "stolen": round(sum(one.stolen for one in these) / sum(one.offered for one in these), 5),
            "middle": round(float(np.median([np.percentile(value, 99.9) for value in values])), 4),
            "calm": {
                "intervals": len(calm),
                "p99.9": round(float(np.percentile(np.concatenate(calm), 99.9)), 4) if calm else None,
            },
        }
    return {"kinds": kinds, "spread": _spread(groups, seed)}


def _spread(groups: dict[str, list[Latencies]], seed: int) -> dict[str, list[float]]:
    """Return where 90 % of the ratios at p99.9 to the quiet intervals lie when whole rounds are drawn again."""
    generator = np.random.default_rng(seed)
    spread = {}
    for kind in (kind for kind in KINDS[1:] if kind in groups):
        rounds = len(groups[kind])
        ratios = []
        for _ in range(RESAMPLES):
            drawn = generator.integers(rounds, size=rounds)
            over, under = ([groups[name][turn] for turn in drawn] for name in (kind, "quiet"))
            ratios.append(np.percentile(np.concatenate(over), 99.9) / np.percentile(np.concatenate(under), 99.9))
        spread[kind] = [round(float(value), 3) for value in np.percentile(ratios, (5, 95))]
    return spread


def _table(result: dict[str, Any]) -> str:
    quiet = result["kinds"]["quiet"]
    names = [*(f"p{percentile:g}" for percentile in SHOWN[:-1]), "max"]
    rows, ratios, calm = [], [], []
    for kind, values in result["kinds"].items():
        figures = [f"{value:.3f}" for value in values["shown"]]
        rows.append((kind, f"{values['requests']:,}", values["failed"], *figures))
        spread = result["spread"].get(kind)
        over = [f"{value / base:.2f}" for value, base in zip(values["shown"], quiet["shown"], strict=True)]
        ratios.append((kind, *over, f"{spread[0]:.2f} to {spread[1]:.2f}" if spread else "-"))
        taken, middle = f"{values['stolen']:.2%}", _beside(values["middle"], quiet["middle"])
        calm.append((kind, taken, *middle, *_calm(values, quiet)))
    parts = (
        f"{result['cycles']} rounds, {result['rate']:,} requests a second; latency in ms.",
        markdown(("interval", "requests", "failed", *names), rows),
        "Over the quiet intervals, and where 90 % of the ratios at p99.9 lie when the rounds are drawn again:",
        markdown(("interval", *names, "p99.9, 90 %"), ratios),
        "The p99.9 of single intervals, in the middle; and of all calm intervals together:",
        markdown(("interval", "taken", "middle", "over quiet", "calm", "p99.9", "over quiet"), calm),
        "\n".join(_goals(result)),
    )
    return "\n\n".join(parts)


def _calm(values: dict[str, Any], quiet: dict[str, Any]) -> tuple[Any, ...]:
    return values["calm"]["intervals"], *_beside(values["calm"]["p99.9"], quiet["calm"]["p99.9"])


def _beside(value: float | None, base: float | None) -> tuple[str, str]:
    """Return a figure and its ratio to that of the quiet intervals."""
    return f"{value:.3f}" if value else "-", f"{value / base:.2f}" if value and base else "-"


def _goals(result: dict[str, Any]) -> list[str]:
    worst = {kind: values["shown"][2] for kind, values in result["kinds"].items()}
    held, stops = result["held_us"], result["barrier_us"]
    ratio = {kind: value / worst["quiet"] for kind, value in worst.items()}
    return [
        goal("p99.9, patch over quiet", ratio["patch"], WORST_RATIO),
        f"* p99.9, quiet again over quiet (noise): {ratio['quiet again']:.3f}",
        f"* p99.9, patch over check (engines that do nothing): {worst['patch'] / worst['check']:.3f}",
        f"* p99.9, barrier over quiet: {ratio['barrier']:.3f}, goal: visibly worse than patch",
        goal("hold of one thread, p99", held["p99"], MOST_HELD_US, " µs"),
        f"* {held['count']} holds of one thread: p50 {held['p50']:.0f} µs, longest {held['max']:.0f} µs",
        f"* the barrier stopped all threads at once for {stops['p50']:.0f} µs (p50), {stops['max']:.0f} µs (longest)",
        f"* who migrated how: {', '.join(f'{how} {count:,}' for how, count in result['ways'].items())}",
        f"* apply and revert took {result['patch_s']['p50']:.2f} s (p50) with the starts of their engines",
    ]
