"""The health gate: may a rollout go on, judged by its pods and by the last answer of Prometheus?"""

from dataclasses import dataclass
from datetime import datetime

from podgraft_api.strategy import Health
from podgraft_operator.census import Census
from podgraft_operator.problem import Problem

NAMED = 5


@dataclass(frozen=True)
class Measurement:
    """The last answer to the query. problem None and passed False: no answer, but not for long enough to fail."""

    asked_at: datetime
    passed: bool
    problem: Problem | None = None


def judge(health: Health | None, census: Census, forgiven: int, measured: Measurement | None) -> Problem | None:
    """Return why the gate is shut, None while it is open. forgiven: restarts that somebody has resumed in spite of."""
    if health is None or not census.begun:
        return None
    if health.ready and census.unready:
        more = f" and {len(census.unready) - NAMED} more" if len(census.unready) > NAMED else ""
        names = ", ".join(census.unready[:NAMED])
        return Problem("PodNotReady", f"no longer ready since the patch: {names}{more}")
    restarts = max(0, census.restarts - forgiven)
    if health.max_restarts is not None and restarts > health.max_restarts:
        return Problem(
            "TooManyRestarts", f"{restarts} container restarts since the patch, allowed {health.max_restarts}"
        )
    return measured.problem if health.prometheus is not None and measured is not None else None


def confirmed(health: Health | None, census: Census, measured: Measurement | None, since: datetime) -> bool:
    """Return whether a step may end: the query, if there is one, was answered well after `since`."""
    if health is None or health.prometheus is None or not census.begun:
        return True
    return measured is not None and measured.passed and measured.asked_at >= since
