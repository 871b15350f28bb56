"""The operator's clock."""

from datetime import UTC, datetime, timedelta

from podgraft_operator.clock import Clock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_the_clock_does_not_jump() -> None:
    """Only the monotonic clock moves it, whatever the time of day does meanwhile."""
    days, passed = [NOON], [100.0]
    clock = Clock(lambda: days[-1], lambda: passed[-1])
    passed.append(107.5)
    for wrong in (NOON + timedelta(days=300), NOON - timedelta(days=300)):
        days.append(wrong)
        assert clock.now() == NOON + timedelta(seconds=7.5)
