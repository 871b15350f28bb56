"""The engine is killed at any instant: the program never notices, and the next engine goes on (invariant 8)."""

import random
import time

import pytest
from conftest import Target, engine, start_engine

SEED = 20261123
ROUNDS = 8


@pytest.mark.engine
def test_killed_engines_harm_nothing_and_the_next_one_goes_on(target: Target, bundle: str) -> None:
    """After each kill apply and then revert finish; no thread changes twice, no call is cut, nothing leaks."""
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
    assert killed > ROUNDS
    assert len(target.maps()) <= maps + 1
    last = target.quit()
    assert (last["wrong"], last["eintr"]) == (0, 0)


def kill_in_the_middle(target: Target, chance: random.Random, **request: str) -> bool:
    """Kill an engine at a random instant after it has begun to read the process; tell whether it was still alive."""
    child = start_engine(target.pid, **request)
    if request["op"] == "apply":
        child.stdout.readline()
    else:
        time.sleep(chance.uniform(0.3, 0.8))
    time.sleep(chance.uniform(0, 0.03))
    alive = child.poll() is None
    child.kill()
    child.communicate()
    return alive
