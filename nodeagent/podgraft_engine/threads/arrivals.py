# SPDX-License-Identifier: GPL-2.0-only
"""Who has migrated by itself, as the log of the wake-up points tells it (design 5, a and b).

The log names threads by number, and a number may be given to a new thread. So an entry counts only for a thread that
was there, with the same start time, in a listing before the entry appeared and in one after it.
"""

from collections.abc import Callable, Iterable

from podgraft_engine.target.proc import Process

ThreadKey = tuple[int, int]


class Arrivals:
    """Follows the log from before the first point is armed.

    Args:
        process: the target.
        log: returns the numbers that threads of the goal's generation know themselves by, and whether each was at a
            declared point.
        keys: a listing that was made before this.
    """

    def __init__(self, process: Process, log: Callable[[], dict[int, bool]], keys: Iterable[ThreadKey]) -> None:
        self._process = process
        self._log = log
        self._nested = len(process.status(process.pid).get("NSpid", "").split()) > 1
        self._own: dict[ThreadKey, int] = {}
        self._listed = list(keys)
        self._known = log()
        self._pending: dict[ThreadKey, bool] = {}

    def since(self, keys: Iterable[ThreadKey]) -> dict[ThreadKey, bool]:
        """Return who has arrived: at a declared point? `keys` is a listing that was made just now."""
        now = set(keys)
        arrived = {key: at for key, at in self._pending.items() if key in now}
        known = self._log()
        fresh = {number: at for number, at in known.items() if number not in self._known}
        own = {self._own_number(key): key for key in self._listed} if fresh else {}
        self._pending = {own[number]: at for number, at in fresh.items() if number in own}
        self._listed, self._known = list(now), known
        return arrived

    def expects(self, key: ThreadKey) -> bool:
        """Tell whether the log names a thread that only has to be seen once more."""
        return key in self._pending

    def _own_number(self, key: ThreadKey) -> int:
        """Return the number by which a thread knows itself: a container has a pid name space of its own (NSpid)."""
        if not self._nested:
            return key[0]
        if key not in self._own:
            numbers = self._process.status(key[0]).get("NSpid", "").split()
            self._own[key] = int(numbers[-1]) if numbers else 0
        return self._own[key]
