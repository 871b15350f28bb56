"""Measure a rollout over 100, 300 and 1,000 simulated nodes, and write docs/scale.md with its plot.

`python -m bench.scale [NODES ...]`; results of other sizes are kept, so each can be repeated alone. `--tables` writes
page and plot anew from what was recorded.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from bench.harness import BenchFailedError
from bench.machine import describe
from bench.scale import report
from bench.scale.fleet import Fleet
from bench.scale.phases import measure
from hack.tools import REPOSITORY, ToolFailedError, cache, say, step, unwind_on_signals

SIZES = (100, 300, 1000)
PODS_PER_NODE = 10
# A Python process uses one processor; that of the agents must not be what a large fleet waits for.
NODES_PER_PROCESS = 500


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", nargs="*", type=int, help="sizes (default: 100 300 1000)")
    parser.add_argument("--no-revert", action="store_true", help="do not measure how the patch is taken back")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="where page and plot go (default docs)")
    parser.add_argument("--tables", action="store_true", help="measure nothing; page and plot from the last results")
    options = parser.parse_args()
    folder = options.out / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for nodes in [] if options.tables else options.nodes or SIZES:
        fleet = Fleet("shop", nodes, PODS_PER_NODE)
        work = cache() / "scale" / str(nodes)
        shutil.rmtree(work, ignore_errors=True)
        processes = -(-nodes // NODES_PER_PROCESS)
        with step(f"scale: {nodes} nodes"):
            machine = describe(fleet.seed, quick=False)
            restart = nodes >= max(SIZES)
            measured = measure(fleet, work, processes=processes, revert=not options.no_revert, restart=restart)
        shutil.rmtree(work)
        results[str(nodes)] = {"machine": machine} | measured
        results = dict(sorted(results.items(), key=lambda one: int(one[0])))
        # At once: what took minutes must not be lost to a later size that fails.
        file.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(report.write(results, options.out))


if __name__ == "__main__":
    unwind_on_signals()
    try:
        main()
    except (BenchFailedError, ToolFailedError) as failure:
        say(f"error: {failure}")
        sys.exit(1)
