"""Is any running thread stopped longer than the engine says? A thread that watches the clock answers, without perf.

In one run, in turn: an interval without a patch, and one with apply and revert cycles. What the machine itself does to
the thread (the first column) is the noise that the second must be compared with.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.harness import ENGINE, Options, build, engine, markdown, percentiles, running
from bench.pictures import figure, save

BUCKETS = 32
THREADS = 1  # one processor is left free
ROUNDS, QUICK_ROUNDS, CYCLES = 10, 2, 2


def run(options: Options) -> dict[str, Any]:
    """Alternate patched and unpatched intervals of the same length."""
    program, bundle = build("gaps", ["step"], options.work)
    seen = {"calm": [0] * BUCKETS, "patched": [0] * BUCKETS}
    longest = {"calm": 0, "patched": 0}
    held: list[float] = []
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with running(program, THREADS) as child:
        for _ in range(rounds):
            _report(child)
            began = time.monotonic()
            for _ in range(CYCLES):
                held += engine(child.pid, op="apply", bundle=bundle).holds_us()
                held += engine(child.pid, op="revert", name="gaps").holds_us()
            _add(seen, longest, "patched", _report(child))
            began_calm, lasted = time.monotonic(), time.monotonic() - began
            while time.monotonic() - began_calm < lasted:
                # As much work as the engine starts bring, but on no process: the noise must be the same.
                subprocess.run([ENGINE], input="{}", capture_output=True, text=True, check=False)
            _add(seen, longest, "calm", _report(child))
    return {"cycles": rounds * CYCLES, "seen": seen, "longest_ns": longest, "held_us": percentiles(held)}


def _report(child: "subprocess.Popen[str]") -> dict[str, Any]:
    assert child.stdin and child.stdout  # noqa: PT018
    child.stdin.write("report\n")
    child.stdin.flush()
    answer: dict[str, Any] = json.loads(child.stdout.readline())
    return answer


def _add(seen: dict[str, list[int]], longest: dict[str, int], kind: str, answer: dict[str, Any]) -> None:
    seen[kind] = [a + b for a, b in zip(seen[kind], answer["buckets"], strict=True)]
    longest[kind] = max(longest[kind], answer["longest_ns"])


def table(result: dict[str, Any]) -> str:
    """Return histogram and summary as Markdown."""
    calm, patched = result["seen"]["calm"], result["seen"]["patched"]
    rows = [(f"{2**b / 1000:.0f} µs", calm[b], patched[b]) for b in range(10, BUCKETS) if calm[b] or patched[b]]
    held, longest = result["held_us"], result["longest_ns"]
    return (
        markdown(("gap from", "without a patch", "with apply and revert"), rows)
        + f"\n\n* {result['cycles']} apply and revert cycles, {held['count']} holds: p50 {held['p50']:.0f} µs, "
        f"p99 {held['p99']:.0f} µs, longest {held['max']:.0f} µs\n"
        f"* longest gap without a patch {longest['calm'] / 1000:.0f} µs, with {longest['patched'] / 1000:.0f} µs, "
        f"ratio {longest['patched'] / max(longest['calm'], 1):.2f}"
    )


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draw both histograms."""
    drawing, (axes,) = figure("Gaps seen by a running thread", 1)
    edges = [2**bucket / 1000 for bucket in range(10, BUCKETS)]
    for kind, color in (("calm", "#8794a1"), ("patched", "#2a9d8f")):
        axes.step(edges, result["seen"][kind][10:], where="post", label=kind, color=color)
    axes.set_xscale("log")
    axes.set_yscale("symlog")
    axes.set(xlabel="gap (µs)", ylabel="how many")
    return save(drawing, folder / "gaps")
