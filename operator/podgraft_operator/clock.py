"""A time of day that does not jump."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class Clock:
    """The time of day at the start, and from then on what the monotonic clock adds.

    When somebody sets the machine's clock, pauses and deadlines that are under way go on as if nothing had happened.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._start, self._at = wall(), monotonic()

    def now(self) -> datetime:
        """Return the time, in UTC."""
        return self._start + timedelta(seconds=self._monotonic() - self._at)
