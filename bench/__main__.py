"""Run the benchmarks, and write tables and plots under docs/bench.

`python -m bench [NAME ...] [--quick]`; without names all of them. Results of an earlier run of the others are kept, so
each can be repeated alone. `--tables` writes tables and plots anew from what was recorded.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench import report
from bench.harness import BenchFailedError, Options
from bench.machine import describe
from hack.tools import REPOSITORY, ToolFailedError, cache, say, step, unwind_on_signals

FOLDER = REPOSITORY / "docs" / "bench"


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(report.BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="a short run: does it work? its numbers say little")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cycles", type=int, help="rounds of `latency` (default 200, quick: 3)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where tables and plots go (default docs/bench)")
    parser.add_argument("--tables", action="store_true", help="measure nothing; tables and plots from the last results")
    options = parser.parse_args()
    unknown = set(options.names) - set(report.BENCHMARKS)
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in [] if options.tables else options.names or report.BENCHMARKS:
        with tempfile.TemporaryDirectory(dir=cache()) as work, step(f"bench: {name}"):
            machine = describe(options.seed, quick=options.quick)
            asked = Options(Path(work), options.quick, options.seed, options.cycles)
            results[name] = {"machine": machine, **report.BENCHMARKS[name].run(asked)}
        # At once: what took minutes must not be lost to a later benchmark that fails.
        file.write_text(json.dumps(results, indent=1) + "\n")
    text = report.write(results, options.out)
    sys.stdout.write(text)


if __name__ == "__main__":
    unwind_on_signals()
    try:
        main()
    except (BenchFailedError, ToolFailedError) as failure:
        say(f"error: {failure}")
        sys.exit(1)
