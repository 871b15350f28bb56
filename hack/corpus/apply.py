"""One bundle in the program that it is for, while that runs under load: check, apply, observe, revert."""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hack.corpus.bundles import PODGRAFT, Built, Ground
from hack.corpus.cases import Corpus
from hack.corpus.server import load, processes, server
from hack.tools import REPOSITORY, ToolFailedError, digest_of, step

DEADLINE = "30s"
OBSERVE_SECONDS = 120
# On a starved machine the helper leaves, and threads do not stop in time; "try again" is the advice for these reasons.
AGAIN, TRIES = {"Busy", "HelperUnreachable", "NoCarrier"}, 4


@dataclass
class Applied:
    """What happened to the processes of one server.

    done and total count processes; again: further tries that were needed; moves: threads by the way they went, to the
    new code and back; problems: what was refused or failed, empty when all went well; answers: what observe.py saw
    before, patched and reverted. held_us is the longest hold of a thread that moved, carrier_us of the borrowed one.
    """

    total: int = 0
    done: int = 0
    reverted: int = 0
    threads: int = 0
    held_us: float = 0.0
    carrier_us: float = 0.0
    again: int = 0
    moves: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    @property
    def under_load(self) -> bool:
        """Say whether every process was patched and reverted and nobody noticed."""
        return self.total > 0 and self.done == self.reverted == self.total and not self.problems

    @property
    def by_itself(self) -> int:
        """Count the moves of threads that nobody held: at a point, when they woke, or born of one that had moved."""
        return sum(self.moves.get(how, 0) for how in ("point", "wakeup", "inherited"))

    @property
    def observed(self) -> str:
        """Say in a word whether the fix was seen."""
        if not self.answers:
            return "-"
        before, patched, reverted = self.answers
        if before == patched:
            return "no"
        return "yes" if before == reverted else "not reverted"


def apply(corpus: Corpus, ground: Ground, built: Built) -> Applied:
    """Return what became of a bundle, from the cache if neither bundle nor engine have changed.

    Raises:
        ToolFailedError: the server or its load cannot be started.
    """
    known = known_apply(ground, built)
    if known is not None:
        return known
    # Not in the cache: workers that are nobody cannot reach a home folder.
    with step(f"{ground.case.name}: apply under load"), tempfile.TemporaryDirectory() as name:
        result = _apply_in(corpus, ground, Path(name))
    if not result.problems:  # what went wrong is tried again by the next run
        (ground.home / "apply.json").write_text(json.dumps({"key": _key(ground, built), **asdict(result)}, indent=1))
    return result


def known_apply(ground: Ground, built: Built) -> Applied | None:
    """Return what the cache holds, if neither bundle nor engine have changed."""
    kept = ground.home / "apply.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {"key": None}
    return Applied(**known) if known.pop("key") == _key(ground, built) else None


def _key(ground: Ground, built: Built) -> str:
    return digest_of(built.digest, REPOSITORY / "nodeagent" / "podgraft_engine", ground.program.name)


def _apply_in(corpus: Corpus, ground: Ground, folder: Path) -> Applied:
    folder.chmod(0o755)
    result, name = Applied(), ground.case.name.lower()
    with server(corpus, ground, folder) as child:
        _observe(corpus, ground, result)
        with load(ground, folder) as said:
            pids = processes(child)
            result.total = len(pids)
            result.done = sum([_transition(result, pid, "apply", str(ground.bundle)) for pid in pids])
            _observe(corpus, ground, result)
            result.reverted = sum([_transition(result, pid, "revert", name) for pid in pids]) if result.done else 0
        failed = ground.program.load_errors(said.read_text(errors="replace"))
        if failed:
            result.problems.append(f"load: {failed}")
        if processes(child) != pids or child.poll() is not None:
            result.problems.append("a process of the server is gone")
        _observe(corpus, ground, result)
    return result


def _transition(result: Applied, pid: int, verb: str, what: str) -> bool:
    """Check (before an apply) and bring one process to new or old code; note what speaks against it."""
    if verb == "apply":
        for event in _podgraft("check", f"--pid={pid}", what):
            for problem in event.get("problems", []):
                result.problems.append(f"check: {problem['reason']}: {problem['detail']}")
    for number in range(TRIES):
        events = _podgraft(verb, f"--pid={pid}", f"--deadline={DEADLINE}", what)
        last = events[-1]
        if last.get("reason") not in AGAIN:
            break
        result.again += number + 1 < TRIES
    result.held_us = max([result.held_us, *(float(e.get("held_us") or 0) for e in events)])
    result.carrier_us = max([result.carrier_us, *(float(e.get("carrier_held_us") or 0) for e in events)])
    if last["event"] in {"finalized", "reverted"}:
        for how, count in last["how"].items():
            result.moves[how] = result.moves.get(how, 0) + count
        if verb == "apply":
            result.threads += int(last["threads"])
        return True
    result.problems.append(f"{verb}: {last.get('reason')}: {last.get('detail')}{_waiting(events)}")
    return False


def _waiting(events: list[dict[str, Any]]) -> str:
    found = [event for event in events if event["event"] == "waiting"]
    return f" ({found[-1]['name']} in {found[-1]['function']}: {found[-1]['why']})" if found else ""


def _podgraft(*words: str) -> list[dict[str, Any]]:
    result = subprocess.run([PODGRAFT, *words, "--json"], capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    return events or [{"event": "failed", "reason": "InternalError", "detail": result.stderr[-300:]}]


def _observe(corpus: Corpus, ground: Ground, result: Applied) -> None:
    if not ground.case.observable:
        return
    words = [sys.executable, str(corpus.folder / "observe.py"), ground.case.name]
    told = subprocess.run(words, capture_output=True, text=True, check=False, timeout=OBSERVE_SECONDS)
    if told.returncode != 0:
        raise ToolFailedError(f"observe.py {ground.case.name} ended with {told.returncode}: {told.stderr[-300:]}")
    result.answers.append(told.stdout.strip())
