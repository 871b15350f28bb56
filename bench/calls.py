"""What does a call of a patched function cost, before and after the patch is finalized?

A loop of 10,000 calls between two readings of the time stamp counter, 200 times. One thread stays inside of a replaced
function and so keeps the transition open: it measures the way to the old code, another one the way to the new code.
The states take turns in several rounds, for the machine itself is at times half as fast for a second.
"""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import BenchFailedError, Options, build, engine, markdown, running
from bench.pictures import figure, save

OPEN_FOR_S = 1.0
ROUNDS, QUICK_ROUNDS = 21, 2
STATES = (
    "unpatched",
    "transition, thread on old code",
    "transition, migrated thread",
    "finalized",
    "reverted",
)


def run(options: Options) -> dict[str, Any]:
    """Measure the five states in one process, round by round."""
    program, bundle = build("calls", ["step", "stay"], options.work)
    medians: dict[str, list[float]] = {state: [] for state in STATES}
    with running(program) as child:
        for _ in range(QUICK_ROUNDS if options.quick else ROUNDS):
            rung, cycles = _round(child, bundle)
            for state, values in cycles.items():
                medians[state].append(float(np.median(values)))
    return {"rung": rung, "cycles": medians}


def _round(child: "subprocess.Popen[str]", bundle: str) -> tuple[str, dict[str, list[float]]]:
    """Apply and revert once; return the kind of site, and the cycles per call of each batch in each state."""
    cycles = {"unpatched": _ask(child, "main")}
    answer = engine(child.pid, op="apply", bundle=bundle, deadline=OPEN_FOR_S, may_fail=True)
    if answer.events[-1].get("reason") != "DeadlinePassed":
        raise BenchFailedError(f"the transition did not stay open: {answer.events[-1]}")
    rungs = {site["function"]: site["rung"] for site in answer.of("inspected")[0]["sites"]}
    cycles["transition, migrated thread"] = _ask(child, "main")
    cycles["transition, thread on old code"] = _ask(child, "inside")
    _say(child, "release")
    engine(child.pid, op="apply", bundle=bundle)
    cycles["finalized"] = _ask(child, "main")
    engine(child.pid, op="revert", name="calls")
    cycles["reverted"] = _ask(child, "main")
    _say(child, "stay")
    return rungs["step"], cycles


def _ask(child: "subprocess.Popen[str]", command: str) -> list[float]:
    return [float(word) for word in _say(child, command).split()]


def _say(child: "subprocess.Popen[str]", command: str) -> str:
    assert child.stdin and child.stdout  # noqa: PT018
    child.stdin.write(command + "\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        raise BenchFailedError(f"the target has ended with {child.wait()}")
    return answer


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    cycles = result["cycles"]
    more = {state: np.array(values) - np.array(cycles["unpatched"]) for state, values in cycles.items()}
    base = float(np.median(cycles["unpatched"]))
    rows = [
        (
            state, f"{np.median(cycles[state]):.2f}", f"{min(cycles[state]):.2f}", f"{max(cycles[state]):.2f}",
            f"{np.median(more[state]):+.2f}", f"{1 + np.median(more[state]) / base:.2f}",
        )
        for state in STATES
    ]  # fmt: skip
    headings = ("state", "cycles per call", "fastest round", "slowest", "more than unpatched", "ratio")
    site = f"* The function is one multiplication and one addition; its site is a `{result['rung']}`. No goal is set."
    return f"{markdown(headings, rows)}\n\n* {len(cycles['reverted'])} rounds; medians\n{site}"


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the medians as bars."""
    drawing, (axes,) = figure("Cost of a patched call", 1)
    medians = [np.median(result["cycles"][state]) for state in STATES]
    axes.barh(np.arange(len(STATES)), medians, color="#4c78a8")
    axes.set_yticks(np.arange(len(STATES)), STATES)
    axes.invert_yaxis()
    axes.set(xlabel="cycles of the time stamp counter per call")
    return save(drawing, folder / "calls")
