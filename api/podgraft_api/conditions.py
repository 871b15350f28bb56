"""Conditions as kstatus reads them: Ready says done, Reconciling and Stalled say why not."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from podgraft_api.model import Int64, Report

Truth = Literal["True", "False", "Unknown"]


class Condition(Report):
    """One condition, the form of meta/v1."""

    type: Annotated[str, Field(max_length=316)]
    status: Truth
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    message: Annotated[str, Field(max_length=32768)] = ""
    observed_generation: Int64 = 0
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]


def condition(kind: str, *, status: bool, reason: str, message: str, generation: int) -> Condition:
    """Return a condition that changed now (UTC, seconds)."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Condition(
        type=kind,
        status="True" if status else "False",
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=now,
    )


def merged(before: Iterable[Condition], now: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return `now`, with the old transition time where the truth of a condition has not changed."""
    old = {one.type: one for one in before}
    return tuple(
        one.model_copy(update={"last_transition_time": old[one.type].last_transition_time})
        if one.type in old and old[one.type].status == one.status
        else one
        for one in now
    )
