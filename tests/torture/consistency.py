"""Two functions that must change together, called as a pair by every thread all the time: is ever a pair mixed?

    python -m tests.torture.consistency [--patches 1000] [--threads 6] [--seed N]

Two bundles replace each other, again and again, and are reverted now and then. Columns: patches and reverts that were
done · threads · pairs · mixed: pairs of two versions inside of a function that is replaced as well, where no thread may
migrate · torn: pairs of two versions elsewhere, of which each thread may see one in each transition, when it migrates
between the two calls · late: pairs of another version than the one that is in, after the engine said that all threads
had migrated · changes: of version, the most that one thread has seen; not more than there were transitions.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hack.tools import unwind_on_signals
from tests.engine import forge
from tests.engine.conftest import TARGETS, Target
from tests.torture.engines import Outcome, run

SEED = 20261125
FUNCTIONS = ["left", "right", "both"]
NAMES = {2: "even", 3: "odd"}
ORIGINAL = 1
REVERTS = 0.25
DEADLINE_S = 20.0
TRIES = 6
PATIENCE_S = 10.0
SHOW_EVERY = 10


@dataclass
class Row:
    """What came of a run."""

    threads: int
    patches: int = 0
    reverts: int = 0
    pairs: int = 0
    mixed: int = 0
    torn: int = 0
    late: int = 0
    changes: int = 0
    wrong: int = 0
    stories: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        transitions = self.patches + self.reverts
        too_many = self.changes > transitions or self.torn > transitions * self.threads
        return bool(self.mixed or self.late or self.wrong or too_many or self.stories)

    def line(self) -> str:
        numbers = (self.patches, self.reverts, self.threads, self.pairs, self.mixed, self.torn, self.late)
        return "".join(f"{number:>13}" for number in (*numbers, self.changes, self.wrong))


HEADER = "".join(
    f"{title:>13}" for title in ("patches", "reverts", "threads", "pairs", "mixed", "torn", "late", "changes", "wrong")
)


class Consistency:
    """The program, two bundles of it, and a sequence of transitions drawn at random."""

    def __init__(self, folder: Path, threads: int, seed: int) -> None:
        self._folder, self._chance, self._row = folder, random.Random(seed), Row(threads)
        self._program = forge.compile_program(TARGETS / "together.c", folder / "together")
        for version, name in NAMES.items():
            relocatable = forge.compile_object(TARGETS / "together_patch.c", folder / "patch.o", f"-DVERSION={version}")
            others = [other for other in NAMES.values() if other != name]
            forge.forge(self._program, relocatable, FUNCTIONS, folder / f"{name}.graft", name=name, replaces=others)

    def run(self, patches: int, show: Callable[[str], None] = lambda _: None) -> Row:
        """Patch that many times; `show` gets a line now and then."""
        self._show = show
        command = [str(self._program), str(self._row.threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
                self._transitions(Target(child, self._program), patches)
                out, _ = child.communicate("quit\n", timeout=60)
                self._take(json.loads(out.splitlines()[-1]))
            finally:
                child.kill()
        return self._row

    def _transitions(self, target: Target, patches: int) -> None:
        version = ORIGINAL
        while self._row.patches < patches and not self._row.stories:
            if version != ORIGINAL and self._chance.random() < REVERTS:
                self._move(target, op="revert", name=NAMES[version])
                self._row.reverts += 1
                version = ORIGINAL
            else:
                version = self._chance.choice([v for v in NAMES if v != version])
                self._move(target, op="apply", bundle=str(self._folder / f"{NAMES[version]}.graft"))
                self._row.patches += 1
            if not self._row.stories:
                self._look(target, version)
            if (self._row.patches + self._row.reverts) % SHOW_EVERY == 0:
                self._show(self._row.line())

    def _move(self, target: Target, **request: str) -> None:
        outcome: Outcome | None = None
        for _ in range(TRIES):
            outcome = run(self._folder, pid=target.pid, deadline=DEADLINE_S, **request)
            # What it did not reach in time, or without a processor for its helper, the same command goes on with.
            if outcome.code != 4 and outcome.reason != "HelperUnreachable":
                break
        if outcome is None or outcome.code:
            self._row.stories.append(f"{request}: {outcome}")

    def _look(self, target: Target, version: int) -> None:
        """All threads have migrated: every pair from here on must be of this version."""
        self._take(target.report())
        until, window = time.monotonic() + PATIENCE_S, 0.001
        while True:
            report = target.report()
            self._take(report)
            self._row.late += bool(report["seen"] & ~(1 << version))
            if report["slowest"] or time.monotonic() > until:
                break
            # Each report counts anew: on a busy machine not every thread has its turn in a short while.
            time.sleep(window)
            window = min(2 * window, 1)
        if not report["slowest"]:
            self._row.stories.append("a thread makes no progress")

    def _take(self, report: dict[str, int]) -> None:
        self._row.pairs += report["pairs"]
        self._row.mixed, self._row.torn = report["mixed"], report["torn"]
        self._row.changes, self._row.wrong = report["changes"], report["wrong"]


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=6)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    began = time.monotonic()
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        test = Consistency(Path(folder), arguments.threads, arguments.seed)
        row = test.run(arguments.patches, lambda line: print(line, flush=True))
    print(row.line(), f"{time.monotonic() - began:.0f} s", sep="\n")
    print(*row.stories, sep="\n", file=sys.stderr)
    return 1 if row.failed else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
