"""Patch and revert many kinds of programs under load, again and again; each checks its own results.

    python -m tests.torture.torture [--cycles 200] [--seed N] [--only NAME,NAME]

Columns: patches that were applied and reverted · threads when it began · refused (with reason) · late: deadline passed
or no processor in time, tried again · crashes of the program or of an engine · wrong results and EINTRs that the
program saw · maps and threads of ours that are left.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hack.tools import unwind_on_signals
from podgraft_engine.exceptions import CODE_SIZE
from podgraft_engine.helper import block
from podgraft_engine.patched.state import read_state
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process
from tests.engine import forge
from tests.engine.conftest import Target
from tests.torture.engines import Outcome, run

SOURCES = Path(__file__).parent / "programs"
FUNCTIONS = ["left", "right"]
NAME = "torture"
SEED = 20261124
DEADLINE_S = 5.0
TRIES = 12
PATIENCE_S = 5.0
IDLE_S = 3.0


@dataclass(frozen=True)
class Program:
    """How one target is built. flags: for the compiler; library: left and right live in it; strip: without symbols."""

    name: str
    source: str
    flags: tuple[str, ...] = ()
    library: bool = False
    strip: bool = False


PROGRAMS = (
    Program("plain", "plain.c"),
    Program("non-PIE", "plain.c", ("-fno-pie", "-no-pie")),
    Program("static", "plain.c", ("-static",)),
    Program("static-PIE", "plain.c", ("-static-pie",)),
    Program("stripped", "plain.c", strip=True),
    Program("unoptimised", "plain.c", ("-O0",)),
    Program("CET", "plain.c", ("-fcf-protection=full", "-fstack-protector-strong")),
    Program("shared library", "plain.c", ("-DELSEWHERE",), library=True),
    Program("dlopen", "loaded.c", library=True),
    Program("thread storm", "storm.c"),
    Program("forks", "forks.c"),
    Program("spawns and execs", "spawns.c"),
    Program("main has ended", "headless.c"),
    Program("signal handlers", "handlers.c"),
    Program("alternate stacks", "handlers.c", ("-DALTERNATE",)),
    Program("timers", "alarms.c"),
    Program("coroutines", "coroutines.c"),
    Program("deep and large stacks", "deep.c"),
    Program("C++ exceptions", "exceptions.cpp", ("-x", "c++", "-lstdc++", "-lm")),
    Program("cancellation", "cancels.c"),
    Program("mapping and unmapping", "maps.c"),
    Program("large writes", "streams.c"),
    Program("TLS and function pointers", "tls.c"),
    Program("31 blocking calls", "calls.c"),
    Program("system calls of its own", "calls.c", ("-DOWN",)),
)


@dataclass
class Row:
    """What came of one program."""

    name: str
    patches: int = 0
    threads: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    late: int = 0
    crashes: int = 0
    wrong: int = 0
    eintr: int = 0
    leaked_maps: int = 0
    leaked_threads: int = 0
    stories: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.crashes or self.wrong or self.eintr or self.leaked_maps or self.leaked_threads)

    def line(self) -> str:
        refused = ",".join(f"{reason}:{count}" for reason, count in self.refused.items()) or "0"
        counts = (self.late, self.crashes, self.wrong, self.eintr, self.leaked_maps, self.leaked_threads)
        numbers = "".join(f"{count:>9}" for count in counts)
        return f"{self.name:<27}{self.patches:>8}{self.threads:>9}  {refused:<18}{numbers}"


HEADER = f"{'program':<27}{'patches':>8}{'threads':>9}  {'refused':<18}" + "".join(
    f"{title:>9}" for title in ("late", "crashes", "wrong", "EINTRs", "maps", "threads")
)


class Bench:
    """Builds the programs, once each, and runs them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        forge.compile_object(SOURCES / "patch.c", folder / "patch.o")

    def build(self, program: Program) -> tuple[list[str], Path]:
        """Return the command line of a program and its bundle."""
        home = self._folder / program.name.replace(" ", "-")
        home.mkdir(exist_ok=True)
        binary, bundle, flags = home / "program", home / "torture.graft", list(program.flags)
        arguments: list[str] = []
        module = binary
        if program.library:
            module = home / "liblr.so"
            forge.compile_program(SOURCES / "library.c", module, "-shared", "-fPIC")
            arguments = [str(module)] if program.name == "dlopen" else []
            flags += [] if arguments else [str(module), f"-Wl,-rpath,{home}"]
        # Libraries follow the source on gcc's command line; forge puts the source last.
        libraries = [flag for flag in flags if flag.startswith(("-l", "/"))]
        flags = [flag for flag in flags if flag not in libraries]
        # No caller may count on registers that the old function happens to leave alone: the builder sees to that.
        command = [
            "gcc",
            *forge.CFLAGS,
            "-fno-ipa-ra",
            *flags,
            "-o",
            str(binary),
            str(SOURCES / program.source),
            *libraries,
        ]
        subprocess.run([*command], check=True)
        forge.forge(module, self._folder / "patch.o", FUNCTIONS, bundle, name=NAME)
        if program.strip:
            subprocess.run(["strip", str(binary)], check=True)
        return [str(binary), *arguments], bundle

    def torture(self, program: Program, cycles: int, chance: random.Random) -> Row:
        """Patch and revert a program some times, at random distances."""
        command, bundle = self.build(program)
        row = Row(program.name)
        with _running(command) as target:
            row.threads = len(target.tids())
            _Torture(target, row, self._folder, bundle, chance).run(cycles)
        return row


@contextmanager
def _running(command: list[str]) -> Iterator[Target]:
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield Target(child, Path(command[0]))
    finally:
        child.kill()
        child.communicate()


@dataclass
class _Torture:
    target: Target
    row: Row
    folder: Path
    bundle: Path
    chance: random.Random
    seen: dict[str, int] = field(default_factory=dict)

    def run(self, cycles: int) -> None:
        before = self._our_maps()
        for _ in range(cycles):
            if not (self._move("apply", "new") and self._move("revert", "old")):
                break
            self.row.patches += 1
            time.sleep(self.chance.uniform(0, 0.005))
        else:
            self._wait_for_helpers()
            self.row.leaked_maps = self._our_maps() - before
        self._finish()

    def _move(self, op: str, wanted: str) -> bool:
        """Apply or revert, as often as the deadline passes; False when the program cannot be used any more."""
        what = {"bundle": str(self.bundle)} if op == "apply" else {"name": NAME}
        for _ in range(TRIES):
            try:
                outcome = run(self.folder, op=op, pid=self.target.pid, deadline=DEADLINE_S, **what)
            except TimeoutError as hung:
                self.row.stories.append(f"{op}: {hung}")
                self.row.crashes += 1
                return False
            if outcome.code == 0:
                return self._check(wanted)
            if not self._note(op, outcome):
                return False
        self.row.stories.append(f"{op} never converged")
        self.row.wrong += 1
        return False

    def _note(self, op: str, outcome: Outcome) -> bool:
        """Count an engine that did not finish; True when it may be tried again."""
        ended = self.target.child.poll()
        self.row.stories.append(f"{op}: {outcome.code} {outcome.events[-1:]} {outcome.said[-300:]} program: {ended}")
        # An engine that gets no processor for two seconds finds its helper gone; its hint says: try again.
        if outcome.code == 4 or outcome.reason == "HelperUnreachable":
            self.row.late += 1
            return True
        if outcome.code == 3:
            self.row.refused[outcome.reason] += 1
            return outcome.reason in ("NoCarrier", "Busy")
        self.row.crashes += 1
        return False

    def _check(self, wanted: str) -> bool:
        """After a transition every call gets the wanted version; counted anew, for the last count has both."""
        if not self._ask():
            return False
        unwanted = {"new": "old", "old": "new"}[wanted]
        until = time.monotonic() + PATIENCE_S
        while self._ask() and not self.seen[wanted]:
            if time.monotonic() > until:
                self.row.stories.append("no thread makes progress")
                self.row.wrong += 1
                return False
        if self.seen.get(unwanted):
            self.row.stories.append(f"{self.seen} where {wanted} was wanted")
            self.row.wrong += 1
            return False
        return True

    def _ask(self) -> bool:
        try:
            self.seen = json.loads(self.target.ask("report"))
        except (AssertionError, OSError):
            self.row.stories.append(f"ended with {self.target.child.wait()}")
            self.row.crashes += 1
            return False
        return True

    def _finish(self) -> None:
        """End the program as it ends by itself, and take over what it counted."""
        if self.target.child.poll() is not None:
            return
        out, _ = self.target.child.communicate("quit\n", timeout=60)
        last = json.loads(out.splitlines()[-1])
        self.row.wrong += last["wrong"]
        self.row.eintr += last["eintr"]
        bad = last["wrong"] or last["eintr"]
        self.row.crashes += self.target.child.returncode != (1 if bad else 0)

    def _our_maps(self) -> int:
        """Count executable memory that is no file's, and text pages that lie outside of their file's place.

        Our block, the routines of wake-up points and of the search for unwind data, and the areas of patches stay, by
        design: a thread may be in them. But an area serves again, unless what it refers to has another address now, as
        a function has that was bound since.
        """
        process = Process(self.target.pid)
        memory = Memory(process)
        blk = block.find(process, memory)
        state = read_state(process, memory, blk)
        document = state.document if state is not None else None
        stay = {record.code for record in document.wake} if document else set()
        stay |= {finder.data - CODE_SIZE for finder in document.finders} if document else set()
        stay |= {start for patch in document.patches for start, _ in patch.mapped} if document else set()
        served = [(patch.digest, patch.links) for patch in document.patches] if document else []
        anonymous = 0
        seen: dict[str, int] = {}
        for mapping in process.maps():
            ours = mapping.start in stay or (blk is not None and blk.contains(mapping.start))
            anonymous += "x" in mapping.perms and not mapping.path and not ours
            if "x" in mapping.perms and mapping.inode:
                seen[mapping.path] = seen.get(mapping.path, 0) + 1
        twins = sum(count - 1 for count in seen.values())
        return anonymous + twins + len(served) - len(set(served))

    def _wait_for_helpers(self) -> None:
        """A helper that was dismissed leaves at once; what sleeps in our block after its idle time is a leak."""
        process = Process(self.target.pid)
        blk = block.find(process, Memory(process))
        until = time.monotonic() + IDLE_S
        left = 1
        while left and blk is not None:
            sleeps = [process.sleeping_in(tid) for tid in process.threads()]
            left = sum(s is not None and blk.contains(s.pc) for s in sleeps)
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        self.row.leaked_threads = left if blk is not None else 0


def main() -> int:
    """Torture all programs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", help="names, with commas between them")
    arguments = parser.parse_args()
    chosen = [p for p in PROGRAMS if not arguments.only or p.name in arguments.only.split(",")]
    folder = Path(tempfile.mkdtemp())
    failed = False
    print(HEADER, flush=True)
    try:
        bench = Bench(folder)
        for program in chosen:
            row = bench.torture(program, arguments.cycles, random.Random(arguments.seed))
            print(row.line(), flush=True)
            failed |= row.failed or bool(row.refused)
            print(*(f"    {story}" for story in row.stories[:3]), sep="\n", file=sys.stderr)
    finally:
        shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
