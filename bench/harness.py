"""What every benchmark needs: targets that are compiled and run, the engine as the agent runs it, goals, Markdown."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.engine import forge

HERE = Path(__file__).parent
TARGETS = HERE / "targets"
ENGINE = Path(sys.executable).parent / "podgraft-engine"
ENGINE_SECONDS = 120


class BenchFailedError(Exception):
    """A benchmark could not be measured; the text says why. Nothing is reported in its place."""


@dataclass(frozen=True)
class Options:
    """work: a folder for this run. quick: a short run. seed: of everything that is random. cycles: of `latency`."""

    work: Path
    quick: bool
    seed: int
    cycles: int | None = None


@dataclass(frozen=True)
class Answer:
    """What one engine process said, when each line came (time.monotonic), and how long it ran in all (seconds)."""

    events: list[dict[str, Any]]
    stamps: list[float]
    wall_s: float

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    def between(self, first: str, last: str) -> float:
        """Return the seconds from the first event of one kind to the last of another."""
        kinds = [event["event"] for event in self.events]
        return self.stamps[len(kinds) - 1 - kinds[::-1].index(last)] - self.stamps[kinds.index(first)]

    def holds_us(self) -> list[float]:
        """Return how long each thread was held that was held at all, the carrier too."""
        holds = [event["held_us"] for event in self.of("migrated") if event["held_us"]]
        return holds + [event["carrier_held_us"] for event in self.of("prepared") if event["carrier_held_us"]]


def engine(pid: int, *, may_fail: bool = False, **request: Any) -> Answer:
    """Run the engine once.

    Raises:
        BenchFailedError: it did not do what was asked.
    """
    began = time.monotonic()
    lines, stamps = [], []
    with subprocess.Popen([ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin and child.stdout and child.stderr  # noqa: PT018
        child.stdin.write(json.dumps({"pid": pid, "deadline": ENGINE_SECONDS, **request}).encode())
        child.stdin.close()
        # Parsed afterwards: a slow reader would hold up an engine that tells of 10,000 threads.
        for line in child.stdout:
            lines.append(line)
            stamps.append(time.monotonic())
        errors = child.stderr.read().decode()
    answer = Answer([json.loads(line) for line in lines], stamps, time.monotonic() - began)
    if child.returncode and not may_fail:
        raise BenchFailedError(f"engine {request['op']}: {answer.events[-1:]} {errors[-2000:]}")
    return answer


def build(name: str, functions: list[str], work: Path) -> tuple[Path, str]:
    """Compile a target and its patch; return the program and the bundle."""
    program = forge.compile_program(TARGETS / f"{name}.c", work / name)
    patch = forge.compile_object(TARGETS / f"{name}_patch.c", work / f"{name}_patch.o")
    forge.forge(program, patch, functions, work / f"{name}.graft", name=name)
    return program, str(work / f"{name}.graft")


def build_barrier(work: Path) -> Path:
    """Compile the comparison that stops all threads at once."""
    program = work / "barrier"
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, HERE / "barrier.c"], check=True)
    return program


def stop_all(barrier: Path, pid: int, hold_us: int) -> dict[str, int]:
    """Stop all threads of a process at once, hold them, let them go; return how many and how long (ns)."""
    done = subprocess.run([barrier, str(pid), str(hold_us)], capture_output=True, text=True, check=True)
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


@contextmanager
def running(program: Path, *words: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a target from its "ready" on; it is ended at the end.

    Raises:
        BenchFailedError: it did not get ready.
    """
    command = [str(program), *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            if child.stdout.readline() != "ready\n":
                raise BenchFailedError(f"{' '.join(command)} did not get ready")
            yield child
        finally:
            child.kill()


def resident(pid: int) -> dict[str, int]:
    """Return Rss, Pss and Anonymous of a process in KiB (proc_pid_smaps(5), smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = {key: value for key, _, value in (line.partition(":") for line in text.splitlines())}
    return {key: int(fields[key].split()[0]) for key in ("Rss", "Pss", "Anonymous")}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Summarize; zeros where there is nothing."""
    if not len(values):
        return {"count": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    p50, p99 = np.percentile(values, (50, 99))
    return {
        "count": len(values),
        "p50": round(float(p50), 3),
        "p99": round(float(p99), 3),
        "max": round(max(values), 3),
    }


def goal(what: str, value: float, limit: float, unit: str = "") -> str:
    """Say whether a value keeps below its limit, and by how much it does not."""
    said = f"* {what}: {value:,.4g}{unit}, goal ≤ {limit:g}{unit}: "
    return said + ("**met**" if value <= limit else f"**missed** by {(value / limit - 1) * 100:.0f} %")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; the first column is left-aligned, the others are numbers."""
    lines = [" | ".join(headings), " | ".join([":--", *["--:"] * (len(headings) - 1)])]
    lines += [" | ".join(map(str, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
