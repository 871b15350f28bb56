"""Kill engines with SIGKILL, again while they recover: the process never notices and the next engine goes on.

    python -m tests.torture.killtest [--kills 1000] [--seed N] [--subject crowd|successor|redis|all]

Half of the kills come at an instant drawn at random, half at the numbered step of the protocol (podgraft_engine/steps)
that was hit least so far. After each chain of kills an apply or a revert must finish and all must be right.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hack.tools import unwind_on_signals
from podgraft_engine.steps import Step
from tests.torture.engines import Engine, Outcome, run
from tests.torture.subjects import Crowd, RedisServer, Subject, Successor

SEED = 20261124
ROUNDS_OF_A_LIFE = 6
AGAIN = 0.35  # share of kills that are followed by a kill of the engine that recovers
DEADLINE_S = 30.0
# A call of the EINTR class that nobody could rewind any more (design 3.4 and invariant 8).
LEAKS_EINTR = {Step.SEIZED, Step.INTERRUPTED, Step.STOPPED, Step.LOOKED, Step.SLOTS_WRITTEN, Step.GENERATION_SET}
AREA_UNDER_WAY = {Step.AREA_MAPPED, Step.CODE_WRITTEN, Step.AREA_PROTECTED, Step.WORKSPACE_MAPPED}

# Killed here, an engine leaks what it had just mapped or forgotten (docs/limitations.md), and nowhere else.
LEAKS_MAPS = {
    *(Step.COMMAND_WRITTEN, Step.COMMAND_POSTED, Step.HELPER_WOKEN, Step.COMMAND_DONE, Step.COPY_WRITTEN),
    *(Step.COMMITTED, Step.STATE_MAPPED, Step.STATE_OPENED, Step.AREA_MAPPED, Step.WORKSPACE_MAPPED),
    *(Step.WORKSPACE_FORGOTTEN, Step.AREA_FORGOTTEN, Step.WAKE_AREA_MAPPED),
    *(Step.ROOM_MAPPED, Step.ARENA_MAPPED),
}
IDLE_S = 12.0  # twice the time in which a helper leaves: it first does a command that it was not woken for


@dataclass
class Tally:
    """What has happened. steps: kills by the last step that the engine had reached, None before the first."""

    kills: int = 0
    retries: int = 0
    steps: Counter[Step | None] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)

    def fail(self, kind: str, story: str) -> None:
        self.failures[kind] += 1
        self.stories.append(f"{kind}: {story}")

    def line(self) -> str:
        kinds = ("crashes", "wrong", "stuck", "unrecovered")
        return f"kills={self.kills} " + " ".join(f"{kind}={self.failures[kind]}" for kind in kinds)

    def missed(self) -> list[Step]:
        return [step for step in Step if not self.steps[step]]

    def histogram(self) -> str:
        rows = [(step.name, self.steps[step]) for step in Step]
        return "\n".join(f"  {name:<20} {count:>5}" for name, count in [("before the first", self.steps[None]), *rows])


@dataclass(frozen=True)
class Profile:
    """What a run that nobody kills does: its steps and its duration in seconds."""

    steps: Counter[Step]
    seconds: float


class Campaign:
    """Kills against one kind of subject."""

    def __init__(self, make: Callable[[Path], Subject], folder: Path, seed: int, tally: Tally) -> None:
        self._make, self._folder, self._tally = make, folder, tally
        self._chance = random.Random(seed)
        self._profiles = self._measure()

    def run(self, kills: int) -> Tally:
        """Kill that many times more."""
        goal = self._tally.kills + kills
        while self._tally.kills < goal and not self._tally.failures:
            with self._make(self._folder) as subject:
                _Life(subject, self._folder, self._chance, self._profiles, self._tally).live(goal)
        return self._tally

    def _measure(self) -> dict[str, Profile]:
        """Profile the first apply, a later one, and a revert."""
        with self._make(self._folder) as subject:
            profiles = {}
            for name, op in (("first", "apply"), ("back", "revert"), ("apply", "apply"), ("revert", "revert")):
                subject.begin()
                began = time.monotonic()
                outcome = run(self._folder, **_request(subject, op))
                assert outcome.code == 0, outcome
                profiles[name] = Profile(outcome.count(), time.monotonic() - began)
        return profiles


@dataclass
class _Life:
    """One process from its start to its end, with some rounds of kills and recovery."""

    subject: Subject
    folder: Path
    chance: random.Random
    profiles: dict[str, Profile]
    tally: Tally
    patched: bool = False
    first: bool = True
    eintr_allowed: int = 0
    may_have_leaked: bool = False
    has_area: bool = False  # of a patch that was finished once; it stays for good
    fewest_maps: int | None = None

    def live(self, goal: int) -> None:
        self.text, self.tids = self.subject.target.text(), set(self.subject.target.tids())
        for _ in range(ROUNDS_OF_A_LIFE):
            if self.tally.kills >= goal or self.tally.failures:
                return
            self.subject.begin()
            story = self._kill_chain()
            self._recover(story)

    def _kill_chain(self) -> list[str]:
        """Kill an engine, sometimes the one that recovers as well; return what was done."""
        op = "revert" if self.patched else "apply"
        story: list[str] = []
        outcome: Outcome | None = None
        while outcome is None or (outcome.killed and self.chance.random() < AGAIN):
            step = self._next_step(op, outcome)
            outcome = self._kill(op, step)
            story.append(f"{op} killed={outcome.killed} aimed={step} last={outcome.last_step} {outcome.reason}")
            if not outcome.killed:
                self.patched = op == "apply" if outcome.code == 0 else self.patched
                self.has_area |= self.patched
                if outcome.code != 0:
                    self._check_answer(op, outcome, story)
                return story
            self.tally.kills += 1
            self.tally.steps[outcome.last_step] += 1
            self.eintr_allowed += outcome.last_step in LEAKS_EINTR
            self.may_have_leaked |= outcome.last_step in LEAKS_MAPS
            op = self.chance.choice(("apply", "revert"))
        return story

    def _next_step(self, op: str, before: Outcome | None) -> str | None:
        """Choose the step that was hit least of those that this run will come to; None for an instant."""
        if before is not None and before.last_step in AREA_UNDER_WAY:
            return Step.AREA_FORGOTTEN.name
        if not (self.first and before is None) and self.chance.random() < 0.5:
            return None
        seen = self.profiles["first" if self.first and op == "apply" else op].steps
        least = min(seen, key=lambda step: (self.tally.steps[step], self.chance.random()))
        return f"{least.name}:{self.chance.randint(1, seen[least])}"

    def _kill(self, op: str, step: str | None) -> Outcome:
        request = _request(self.subject, op)
        if step is not None:
            return run(self.folder, stop_at=step, **request)
        engine = Engine(self.folder, **request)
        engine.kill_after(self.chance.uniform(0, self.profiles["first" if self.first else op].seconds))
        return engine.wait()

    def _recover(self, story: list[str]) -> None:
        """The next engine must finish, whichever way it is sent."""
        op = self.chance.choice(("apply", "revert"))
        outcome = run(self.folder, **_request(self.subject, op))
        if outcome.reason == "HelperUnreachable":
            # It got no processor for the two seconds after which its helper leaves; its hint says: try again.
            story.append(f"{op}: {outcome.events[-1]}")
            self.tally.retries += 1
            outcome = run(self.folder, **_request(self.subject, op))
        story.append(f"then {op}: {outcome.code} {outcome.reason} {outcome.said[-500:]}")
        self.patched = op == "apply"
        self.has_area |= self.patched
        self.first = False
        self._check_answer(op, outcome, story)
        target = self.subject.target
        if target.child.poll() is not None:
            self.tally.fail("crashes", f"ended with {target.child.returncode} after {story}")
            return
        problem = self.subject.judge(patched=self.patched, eintr_allowed=self.eintr_allowed)
        if problem:
            self.tally.fail("stuck" if problem.startswith("stuck") else "wrong", f"{problem} after {story}")
        elif not self.patched and target.text() != self.text and self._must_be_original():
            self.tally.fail("unrecovered", f"the text is not the file's after {story}")
        elif self.patched and target.text() == self.text:
            self.tally.fail("unrecovered", f"the text is the file's after {story}")
        elif not self.tids <= set(target.tids()):
            self.tally.fail("wrong", f"a thread is lost after {story}")
        elif not self.patched and outcome.code == 0:
            # What was only prepared is no leak either: the next apply uses it or takes it away.
            self._check_leftovers(story)

    def _must_be_original(self) -> bool:
        """Not where a patch below has come back: a successor that was not finished leads there."""
        (status,) = run(self.folder, op="status", pid=self.subject.target.pid).events
        return not status["patches"]

    def _check_leftovers(self, story: list[str]) -> None:
        """No thread of ours, and no more mappings than after the last revert, but where a kill leaks by design."""
        target, until = self.subject.target, time.monotonic() + IDLE_S
        known = self.fewest_maps
        while set(target.tids()) != self.tids and time.monotonic() < until:
            time.sleep(0.01)
        maps = len(target.maps())
        if set(target.tids()) != self.tids:
            self.tally.fail("unrecovered", f"a thread of ours is left after {story}")
        elif known is not None and maps > known and self.subject.steady and not self.may_have_leaked:
            self.tally.fail("unrecovered", f"{maps} mappings in place of {known} after {story}")
        self.fewest_maps, self.may_have_leaked = maps if self.has_area else None, False

    def _check_answer(self, op: str, outcome: Outcome, story: list[str]) -> None:
        nothing_there = op == "revert" and outcome.reason == "NotApplied"
        if outcome.code != 0 and not nothing_there:
            self.tally.fail("unrecovered", f"{outcome} after {story}")


def _request(subject: Subject, op: str) -> dict[str, object]:
    what = {"bundle": subject.bundle} if op == "apply" else {"name": subject.name}
    return {"op": op, "pid": subject.target.pid, "deadline": DEADLINE_S, **what}


def main() -> int:
    """Run the campaign and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--subject", choices=("crowd", "successor", "redis", "all"), default="all")
    arguments = parser.parse_args()
    tally = Tally()
    makers = {"crowd": Crowd, "successor": Successor, "redis": RedisServer}
    chosen = list(makers) if arguments.subject == "all" else [arguments.subject]
    for number, name in enumerate(chosen, 1):
        with tempfile.TemporaryDirectory() as folder:
            began, before = time.monotonic(), tally.kills
            Campaign(makers[name], Path(folder), arguments.seed, tally).run(
                arguments.kills * number // len(chosen) - before
            )
            print(f"{name}: {tally.kills - before} kills in {time.monotonic() - began:.0f} s", flush=True)
    print("last step reached at a kill:", tally.histogram(), sep="\n")
    print(*tally.stories, sep="\n", file=sys.stderr)
    if tally.missed():
        print("never hit:", ", ".join(step.name for step in tally.missed()))
    if tally.retries:
        print(f"engines that lost their helper for want of a processor, and were run again: {tally.retries}")
    print(tally.line())
    return 1 if tally.failures or tally.missed() else 0


if __name__ == "__main__":
    unwind_on_signals()
    sys.exit(main())
