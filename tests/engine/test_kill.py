"""The engine is killed at any instant: the program never notices, and the next engine goes on (invariant 8)."""

import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Target, engine, start_engine

from podgraft_engine.steps import Step

SEED = 20261123
ROUNDS = 3
# An engine killed between a mapping and the note of it leaks it: an area of three protections at most (limitations.md).
MOST_LEAKED = 3
WAKE_AREA = 3  # routines, what they read, room for page clones


@pytest.mark.engine
def test_killed_engines_harm_nothing_and_the_next_one_goes_on(target: Target, bundle: str) -> None:
    """After each kill apply and then revert finish; no thread changes twice, no call is cut, little leaks."""
    chance = random.Random(SEED)
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name="pairs-2").code == 0
    maps, text = len(target.maps()), target.text()
    killed = 0
    for turn in range(1, ROUNDS + 1):
        killed += kill_in_the_middle(target, chance, op="apply", bundle=bundle)
        answer = engine(target.pid, op="apply", bundle=bundle)
        assert answer.code == 0, answer
        assert target.report()["changes"] <= 2 * turn + 1
        killed += kill_in_the_middle(target, chance, op="revert", name="pairs-2")
        answer = engine(target.pid, op="revert", name="pairs-2")
        assert answer.code == 0 or answer.last["reason"] == "NotApplied", answer
        assert target.report()["changes"] <= 2 * turn + 2
        assert target.text() == text
    assert killed >= ROUNDS
    assert len(target.maps()) <= maps + MOST_LEAKED * killed
    last = target.quit()
    assert (last["wrong"], last["eintr"]) == (0, 0)


@pytest.mark.engine
def test_an_engine_can_be_told_where_to_die_and_the_next_one_cleans_up(
    target: Target, bundle: str, tmp_path: Path
) -> None:
    """The environment names a step; what was prepared by then is taken away, so nothing is there twice."""
    trace = tmp_path / "trace"
    prefix = ("env", "PODGRAFT_STOP_AT=AREA_PROTECTED", f"PODGRAFT_TRACE={trace}")
    assert engine(target.pid, prefix=prefix, op="apply", bundle=bundle).code == -signal.SIGKILL
    assert trace.read_bytes()[-1] == Step.AREA_PROTECTED
    before = len(target.maps())
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name="pairs-2").code == 0
    # The mailbox has gone, or the helper of the killed engine had left already; the wake-up points have come.
    assert before - 1 <= len(target.maps()) - WAKE_AREA <= before
    assert target.report()["wrong"] == 0


def kill_in_the_middle(target: Target, chance: random.Random, **request: str) -> bool:
    """Kill an engine at a random instant after it has opened the process's memory; tell whether it was still alive."""
    child = start_engine(target.pid, **request)
    while child.poll() is None and not has_opened_memory(child.pid):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.06))
    alive = child.poll() is None
    child.kill()
    child.communicate()
    return alive


def has_opened_memory(pid: int) -> bool:
    """Tell whether an engine is past its start."""
    with suppress(OSError):
        return any(entry.readlink().name == "mem" for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False
