"""Wait for what others do, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

from hack.tools import ToolFailedError

T = TypeVar("T")


def until(what: str, ask: Callable[[], T], seconds: float = 180.0, pause: float = 0.5) -> T:
    """Ask until the answer is true, and return it; an API server that is away has not answered yet.

    Raises:
        ToolFailedError: no such answer in time; the text has the last error.
    """
    end, last = time.monotonic() + seconds, ""
    while time.monotonic() < end:
        try:
            answer = ask()
        except ToolFailedError as error:
            last = f"; {error}"
        else:
            if answer:
                return answer
            last = f"; {answer!r}"
        time.sleep(pause)
    raise ToolFailedError(f"in {seconds:.0f} s not seen: {what}{last}")
