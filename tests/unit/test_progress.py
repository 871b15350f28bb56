"""The memory of a rollout, moved by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from podgraft_api.nodepatch import BundleRef
from podgraft_api.progress import RolloutStatus
from podgraft_api.strategy import Strategy
from podgraft_operator.census import Census
from podgraft_operator.health import Measurement
from podgraft_operator.problem import Problem
from podgraft_operator.progress import Orders, advance, cap, decided, pausing

NOW = datetime(2026, 1, 1, tzinfo=UTC)
A, B = (BundleRef(digest="sha256:" + one * 64, chunks=1, name=one, build_id="ab" * 20) for one in "ab")
STEPS = [{"pods": 1}, {"pause": {"seconds": 60}}, {"pods": "50%"}, {"pause": {}}]
PROMETHEUS = {"prometheus": {"url": "http://p", "query": "q", "atMost": 1}}


def orders(bundle: BundleRef | None = A, **strategy: Any) -> Orders:
    return Orders(bundle, Strategy.model_validate({"steps": STEPS} | strategy))


def asked(given: Orders, **requests: str) -> Orders:
    return Orders(given.bundle, given.strategy, **requests)


def go(
    memory: RolloutStatus | None, given: Orders, census: Census, seconds: float = 0, measured: Measurement | None = None
) -> RolloutStatus:
    after = advance(memory, given, census, measured, NOW + timedelta(seconds=seconds))
    assert after is not None
    return after


def pods(done: int, begun: int | None = None, **more: Any) -> Census:
    return Census(matched=10, begun=done if begun is None else begun, done=done, digests=frozenset({A.digest}), **more)


def test_way_through_the_steps() -> None:
    """Each step opens so many pods; pauses open none; at the end everything is open."""
    given = orders()
    first = go(None, given, pods(0))
    assert (first.step, cap(first, given.strategy, 10)) == (0, 1)
    pause = go(first, given, pods(1), 10)
    assert (pause.step, cap(pause, given.strategy, 10), pausing(pause, given.strategy)) == (1, 1, True)
    assert go(pause, given, pods(1), 69).step == 1
    half = go(pause, given, pods(1), 70)
    assert (half.step, cap(half, given.strategy, 10)) == (2, 5)
    held = go(half, given, pods(5), 80)
    assert (held.step, held.pause_until) == (3, None)
    assert go(held, given, pods(5), 10**6).step == 3
    last = go(held, asked(given, resume="x"), pods(5), 90)
    assert (last.step, cap(last, given.strategy, 10), last.complete) == (4, None, False)
    done = go(last, asked(given, resume="x"), pods(10), 100)
    assert (done.complete, done.stable) == (True, A)


def test_a_clock_that_was_set_back_makes_no_pause_longer() -> None:
    """A pause that began in what is now the future ends its own length from now, whoever wrote its times."""
    given = orders()
    pause = go(go(None, given, pods(0), 7200), given, pods(1), 7210)
    assert pause.pause_until == "2026-01-01T02:01:10.000Z"
    again = go(pause, given, pods(1), 0)
    assert (again.step, again.pause_until) == (1, "2026-01-01T00:01:00.000Z")
    assert go(again, given, pods(1), 59).step == 1
    assert go(again, given, pods(1), 60).step == 2
    assert go(pause, asked(given, resume="x"), pods(1), 0).step == 2, "a resume is heard nevertheless"


def test_old_request_ends_no_later_pause() -> None:
    """A resume that came when nothing was paused is used up."""
    given = asked(orders(steps=[{"pods": 1}, {"pause": {}}]), resume="early")
    memory = go(None, asked(given), pods(0))
    memory = go(memory, given, pods(0))
    memory = go(memory, given, pods(1))
    assert go(memory, given, pods(1), 10**6).step == 1


def test_no_pods_no_step() -> None:
    """Without a pod to patch nothing is completed, and no pause begins."""
    memory = go(None, orders(steps=[{"pause": {"seconds": 1}}]), Census(), 0)
    memory = go(memory, orders(steps=[{"pause": {"seconds": 1}}]), Census(), 1000)
    assert (memory.step, memory.pause_began, memory.complete) == (0, None, False)


def test_deadline_counts_from_the_last_pod_done_and_not_in_pauses() -> None:
    """The clock starts when something is awaited, again with each pod, and stands while nothing is."""
    given = orders(steps=[], progressDeadlineSeconds=100)
    memory = go(None, given, pods(0, begun=2))
    memory = go(memory, given, pods(1, begun=3), 90)
    memory = go(memory, given, pods(1, begun=3), 180)
    assert memory.failure is None
    late = go(memory, given, pods(1, begun=3), 191)
    assert late.failure is not None
    assert late.failure.reason == "ProgressDeadlineExceeded"
    idle = go(memory, given, pods(3), 185)
    assert go(idle, given, pods(3, begun=4), 10**6).failure is None
    paused = Orders(A, given.strategy, paused=True)
    assert go(memory, paused, pods(1, begun=3), 10**6).failure is None


@pytest.mark.parametrize(
    ("health", "more", "reason"),
    [
        ({}, {"unready": ("p",)}, "PodNotReady"),
        ({"ready": False}, {"unready": ("p",)}, None),
        ({"maxRestarts": 1}, {"restarts": 2}, "TooManyRestarts"),
        ({"maxRestarts": 2}, {"restarts": 2}, None),
        ({}, {"restarts": 9}, None),
    ],
)
def test_gate(health: dict[str, Any], more: dict[str, Any], reason: str | None) -> None:
    """Readiness and restarts fail a rollout by what is asked for, and nothing else does."""
    given = orders(health=health)
    memory = go(go(None, given, pods(0)), given, pods(0, begun=1, **more))
    assert (memory.failure.reason if memory.failure else None) == reason


def test_failure_stays_until_somebody_resumes() -> None:
    """A gate that opens again opens nothing; a resume forgives restarts that were there, and no further one."""
    given = orders(health={"maxRestarts": 0})
    memory = go(go(None, given, pods(0)), given, pods(1, restarts=1))
    memory = go(memory, given, pods(1))
    assert memory.failure is not None
    again = asked(given, resume="x")
    memory = go(memory, again, pods(1, restarts=1))
    assert (memory.failure, memory.forgiven_restarts) == (None, 1)
    assert go(memory, again, pods(1, restarts=2)).failure is not None


def test_step_ends_only_with_a_fresh_answer() -> None:
    """An answer to a question of before the pods were done confirms nothing; a bad one fails the rollout."""
    given = orders(health=PROMETHEUS)
    memory = go(None, given, pods(0))
    old = Measurement(NOW + timedelta(seconds=9), passed=True)
    memory = go(memory, given, pods(1), 10, old)
    assert memory.step == 0
    assert memory.fulfilled_at is not None
    assert go(memory, given, pods(1), 12, Measurement(NOW + timedelta(seconds=11), passed=False)).step == 0
    assert go(memory, given, pods(1), 12, Measurement(NOW + timedelta(seconds=11), passed=True)).step == 1
    bad = Measurement(NOW + timedelta(seconds=11), passed=False, problem=Problem("MetricOutOfBounds", "2"))
    assert go(memory, given, pods(1), 12, bad).failure is not None


def test_revert_is_remembered_over_everything_but_a_resume() -> None:
    """Neither a change to Pause nor a lost bundle nor another bundle calls a revert off."""
    given = orders(health={}, onFailure="Revert")
    memory = go(go(None, given, pods(0)), given, pods(1, unready=("p",)))
    assert memory.withdrawn == A.digest
    for later in (orders(health={}), orders(None)):
        after = go(memory, later, pods(0))
        assert after.failure is not None
        assert after.failure.reverting
    other = go(memory, orders(B), pods(0))
    assert (other.failure, other.withdrawn, other.step) == (None, A.digest, 0)
    assert go(other, orders(B), Census(matched=10)).withdrawn is None
    back = go(memory, asked(given, resume="x"), pods(0))
    assert (back.failure, back.withdrawn, back.step) == (None, None, 0)


def test_pause_becomes_revert_when_the_user_says_so() -> None:
    """A failed rollout that was paused is reverted when onFailure is changed."""
    memory = go(go(None, orders(health={}), pods(0)), orders(health={}), pods(1, unready=("p",)))
    after = go(memory, orders(health={}, onFailure="Revert"), pods(1))
    assert (after.withdrawn, after.failure and after.failure.reverting) == (A.digest, True)


def test_bundle_of_the_last_complete_rollout_needs_no_steps() -> None:
    """Back to it is a rollback; a revert of a bundle that was complete itself goes back to the original code."""
    done = go(go(None, orders(steps=[]), pods(0)), orders(steps=[]), pods(10))
    other = go(done, orders(B), pods(0))
    assert (other.complete, other.step, other.stable) == (False, 0, A)
    assert go(other, orders(A), pods(0)).complete
    reverted = go(done, asked(orders(steps=[]), revert="x"), pods(10))
    assert (reverted.complete, reverted.stable) == (False, None)


def test_other_steps_begin_anew() -> None:
    """Steps that are edited begin at the first; a complete rollout is not begun again."""
    memory = go(go(None, orders(), pods(0)), orders(), pods(1))
    assert memory.step == 1
    assert go(memory, orders(steps=[{"pods": 2}]), pods(1)).step == 0
    done = go(go(None, orders(steps=[]), pods(0)), orders(steps=[]), pods(10))
    assert go(done, orders(), pods(10)).complete


def test_what_must_be_stored_before_it_is_done() -> None:
    """Decisions are; how the clock stands is not."""
    first = go(None, orders(), pods(0))
    assert decided(None, first)
    assert not decided(first, go(first, orders(), pods(0, begun=1), 5))
    assert decided(first, go(first, orders(), pods(1), 5))
