"""How long does it take to patch a process of 1 to 10,000 threads, and what do the threads notice of it?

Each thread sleeps for 0.1 to 0.4 s in `nanosleep`, `poll` or `pthread_cond_timedwait` and then calls the function that
is replaced. Beside it: how long all threads stand still when a barrier stops them at once.
"""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import (
    Options,
    build,
    build_barrier,
    engine,
    goal,
    markdown,
    percentiles,
    resident,
    running,
    stop_all,
)
from bench.pictures import figure, save

COUNTS, QUICK_COUNTS = (1, 10, 100, 1_000, 10_000), (1, 10, 100)
REPEATS = 3
SETTLE_S = 1.0
HOLD_US = 50
GOALS_S = {1_000: 1.0, 10_000: 5.0}
MOST_HELD_US, MOST_KIB = 100.0, 64.0


def run(options: Options) -> dict[str, Any]:
    """Apply and revert a few times at each number of threads."""
    program, bundle = build("sleepers", ["work"], options.work)
    barrier = build_barrier(options.work)
    counts = QUICK_COUNTS if options.quick else COUNTS
    return {"runs": [_measure(program, bundle, barrier, count, options.seed) for count in counts]}


def _measure(program: Path, bundle: str, barrier: Path, count: int, seed: int) -> dict[str, Any]:
    with running(program, count, 0, seed) as child:
        time.sleep(SETTLE_S)
        before = resident(child.pid)
        answers = []
        for turn in range(REPEATS):
            answers.append(engine(child.pid, op="apply", bundle=bundle))
            if turn == 0:
                after = resident(child.pid)
            engine(child.pid, op="revert", name="sleepers")
        stops = [stop_all(barrier, child.pid, HOLD_US)["total_ns"] / 1e3 for _ in range(REPEATS)]
    how: Counter[str] = Counter()
    for answer in answers:
        how.update(answer.of("finalized")[0]["how"])
    return {
        "threads": count,
        "converge_s": [round(answer.between("switched", "finalized"), 3) for answer in answers],
        "apply_s": [answer.of("finalized")[0]["seconds"] for answer in answers],
        "how": dict(how),
        "held_us": percentiles([held for answer in answers for held in answer.holds_us()]),
        "added_kib": {key: after[key] - before[key] for key in after},
        "barrier_us": [round(stop, 1) for stop in stops],
    }


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    headings = (
        "threads", "converge s (median)", "whole apply s", "themselves", "held", "inherited",
        "hold p50 µs", "hold p99 µs", "longest hold µs", "Rss + KiB", "Pss + KiB", "Anonymous + KiB",
        "barrier: all stand still µs",
    )  # fmt: skip
    rows = []
    for run_ in result["runs"]:
        how, total = run_["how"], sum(run_["how"].values())
        ways = (("point", "wakeup"), ("sleeping", "running"), ("inherited",))
        shares = [f"{sum(how.get(way, 0) for way in group) / total:.1%}" for group in ways]
        held, added = run_["held_us"], run_["added_kib"]
        rows.append(
            (
                f"{run_['threads']:,}", f"{np.median(run_['converge_s']):.3f}", f"{np.median(run_['apply_s']):.3f}",
                *shares, *(f"{held[key]:.0f}" for key in ("p50", "p99", "max")),
                *(added[key] for key in ("Rss", "Pss", "Anonymous")), f"{np.median(run_['barrier_us']):,.0f}",
            )
        )  # fmt: skip
    return markdown(headings, rows) + "\n\n" + "\n".join(_goals(result["runs"]))


def _goals(runs: list[dict[str, Any]]) -> list[str]:
    lines = []
    for run_ in runs:
        if run_["threads"] in GOALS_S:
            median = float(np.median(run_["converge_s"]))
            lines.append(goal(f"{run_['threads']:,} threads converge", median, GOALS_S[run_["threads"]], " s"))
    lines.append(goal("hold p99, worst number of threads", max(r["held_us"]["p99"] for r in runs), MOST_HELD_US, " µs"))
    lines.append(goal("memory added (Rss), most", max(r["added_kib"]["Rss"] for r in runs), MOST_KIB, " KiB"))
    lines.append(goal("anonymous memory added, most", max(r["added_kib"]["Anonymous"] for r in runs), MOST_KIB, " KiB"))
    return lines


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw time and stand-still against the number of threads."""
    runs = result["runs"]
    counts = [run_["threads"] for run_ in runs]
    drawing, (left, right) = figure("Threads", 2)
    left.loglog(counts, [np.median(run_["converge_s"]) for run_ in runs], "o-", label="all threads converged")
    left.loglog(counts, [np.median(run_["apply_s"]) for run_ in runs], "s--", label="whole apply")
    goals = [count for count in counts if count in GOALS_S]
    left.plot(goals, [GOALS_S[count] for count in goals], "v", color="#c0392b", label="goal: below")
    left.set(xlabel="threads", ylabel="seconds")
    for key, style in (("p50", "o-"), ("p99", "s--"), ("max", "^:")):
        right.loglog(counts, [run_["held_us"][key] for run_ in runs], style, label=f"one thread held, {key}")
    right.loglog(counts, [np.median(run_["barrier_us"]) for run_ in runs], "x-", color="#c0392b", label="barrier: all")
    right.axhline(MOST_HELD_US, color="#8794a1", linewidth=0.8)
    right.set(xlabel="threads", ylabel="µs stood still")
    return save(drawing, folder / "threads")
