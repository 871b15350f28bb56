"""Is any running thread stopped longer than the engine says? Threads that watch the clock answer, without perf.

In one run, in turn: an interval without a patch, and one with apply and revert cycles. Printed: the histogram of the
gaps that the threads saw in both, their longest gap, and the longest hold that the engine reported. What the machine
itself does to threads (the first column) is the noise that the second must be compared with.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "engine"))
import forge  # noqa: E402

BIN = Path(sys.executable).parent
BUCKETS = 32


def engine(pid: int, **request: Any) -> list[dict[str, Any]]:
    """Run the engine once and return its events."""
    done = subprocess.run(
        [BIN / "podgraft-engine"], input=json.dumps({"pid": pid, **request}), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="spinning threads (default 1: leave a processor free)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cycles", type=int, default=2, help="apply and revert cycles in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        program = forge.compile_program(HERE / "gaps.c", work / "gaps")
        patch = forge.compile_object(HERE / "gaps_patch.c", work / "patch.o")
        forge.forge(program, patch, ["step"], work / "gaps.graft", name="gaps")
        child = subprocess.Popen(
            [program, str(options.threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            compare(child, str(work / "gaps.graft"), options.rounds, options.cycles)
        finally:
            child.kill()
            child.wait()


def compare(child: "subprocess.Popen[str]", bundle: str, rounds: int, cycles: int) -> None:
    """Alternate patched and unpatched intervals of the same length."""
    assert child.stdin and child.stdout and child.stdout.readline() == "ready\n"  # noqa: PT018

    def report() -> dict[str, Any]:
        assert child.stdin and child.stdout  # noqa: PT018
        child.stdin.write("report\n")
        child.stdin.flush()
        answer: dict[str, Any] = json.loads(child.stdout.readline())
        return answer

    seen = {"calm": [0] * BUCKETS, "patched": [0] * BUCKETS}
    longest = {"calm": 0, "patched": 0}
    held: list[float] = []
    for _ in range(rounds):
        report()
        began = time.monotonic()
        for _ in range(cycles):
            events = engine(child.pid, op="apply", bundle=bundle) + engine(child.pid, op="revert", name="gaps")
            held += [e["held_us"] for e in events if e["event"] == "migrated"]
            held += [e["carrier_held_us"] for e in events if e.get("carrier_held_us")]
        add(seen, longest, "patched", report())
        began_calm, lasted = time.monotonic(), time.monotonic() - began
        while time.monotonic() - began_calm < lasted:
            # As much work as the engine starts bring, but on no process: the noise must be the same.
            subprocess.run([BIN / "podgraft-engine"], input="{}", capture_output=True, text=True, check=False)
        add(seen, longest, "calm", report())
    show(seen, longest, held, rounds * cycles)


def add(seen: dict[str, list[int]], longest: dict[str, int], kind: str, answer: dict[str, Any]) -> None:
    """Add one report."""
    seen[kind] = [a + b for a, b in zip(seen[kind], answer["buckets"], strict=True)]
    longest[kind] = max(longest[kind], answer["longest_ns"])


def show(seen: dict[str, list[int]], longest: dict[str, int], held: list[float], cycles: int) -> None:
    """Print histogram and summary."""
    console = Console()
    table = Table("gap", "without a patch", "with apply and revert", title="gaps seen by the threads")
    for bucket in range(10, BUCKETS):
        if seen["calm"][bucket] or seen["patched"][bucket]:
            table.add_row(f"{2**bucket / 1000:.0f} us", str(seen["calm"][bucket]), str(seen["patched"][bucket]))
    console.print(table)
    held.sort()
    console.print(
        f"{cycles} apply and revert cycles, {len(held)} holds: median {held[len(held) // 2]:.0f} us, "
        f"p99 {held[int(len(held) * 0.99)]:.0f} us, longest {held[-1]:.0f} us"
    )
    console.print(
        f"longest gap without a patch {longest['calm'] / 1000:.0f} us, with {longest['patched'] / 1000:.0f} us, "
        f"ratio {longest['patched'] / max(longest['calm'], 1):.2f}"
    )


if __name__ == "__main__":
    main()
