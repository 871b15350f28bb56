"""Pulls from registries, beside the loop: each reference once at a time, few together, failures with a pause."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

RETRY_SECONDS = 30.0
FORGOTTEN_SECONDS = 600.0
# Each holds a whole bundle in memory, 16 MiB at most.
TOGETHER = 3

T = TypeVar("T")


@dataclass
class _Try(Generic[T]):
    task: asyncio.Task[T]
    asked: float
    ended: float | None = None
    before: BaseException | None = None


class Pulls(Generic[T]):
    """Asks `work` for references; `done` is called after each try. Times are monotonic seconds."""

    def __init__(self, work: Callable[[str], Awaitable[T]], done: Callable[[], None]) -> None:
        self._work, self._done = work, done
        self._slots = asyncio.Semaphore(TOGETHER)
        self._tries: dict[str, _Try[T]] = {}

    def ask(self, reference: str) -> T | None:
        """Return what came, None while it has not; raises what the last try ended with, until a new one has ended."""
        now = time.monotonic()
        one = self._tries.get(reference)
        if one is None or (one.ended is not None and now - one.ended >= RETRY_SECONDS):
            one = self._begin(reference, one.task.exception() if one is not None else None)
        one.asked = now
        error = one.task.exception() if one.task.done() else one.before
        if error is not None:
            raise error
        if not one.task.done():
            return None
        del self._tries[reference]
        return one.task.result()

    def prune(self) -> None:
        """Forget what nobody has asked for in a while."""
        late = time.monotonic() - FORGOTTEN_SECONDS
        self._tries = {key: one for key, one in self._tries.items() if not one.task.done() or one.asked > late}

    def _begin(self, reference: str, before: BaseException | None) -> _Try[T]:
        one = _Try(asyncio.create_task(self._run(reference)), time.monotonic(), before=before)
        self._tries[reference] = one

        def ended(_: asyncio.Task[T]) -> None:
            one.ended = time.monotonic()
            self._done()

        one.task.add_done_callback(ended)
        return one

    async def _run(self, reference: str) -> T:
        async with self._slots:
            return await self._work(reference)
