"""Invariants of the design that can be watched from outside while an engine works."""

import contextlib
import threading
from pathlib import Path

from conftest import Target, engine


class Watcher(threading.Thread):
    """Reads the states of all threads again and again; keeps the largest number of traced stops seen at once."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._tasks = Path(f"/proc/{pid}/task")
        self.most = self.looks = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            stopped = [task for task in self._listed() if self._is_held(task)]
            # The looks at two threads are not one instant: the first must still be stopped when the second was seen so.
            if len(stopped) > 1:
                stopped = [task for task in stopped if self._is_held(task)]
            self.most = max(self.most, len(stopped))
            self.looks += 1

    def _is_held(self, task: Path) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = (task / "stat").read_text()
            return text[text.rindex(")") + 2] in "tT"
        return False

    def _listed(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return list(self._tasks.iterdir())
        return []


def test_never_more_than_one_thread_is_held(target: Target, bundle: str) -> None:
    """Invariant 1, seen by a watcher during three cycles."""
    watcher = Watcher(target.pid)
    watcher.start()
    for _ in range(3):
        assert engine(target.pid, op="apply", bundle=bundle).code == 0
        assert engine(target.pid, op="revert", name="pairs-2").code == 0
    watcher.done.set()
    watcher.join()
    assert watcher.looks > 100
    assert watcher.most <= 1


def test_replaced_bytes_lie_inside_one_instruction(target: Target, bundle: str) -> None:
    """Invariant 4: for each function a short jump and a near jump, seven bytes, are all that differs from the text."""
    before = target.text()
    sites = engine(target.pid, op="check", bundle=bundle).last["sites"]
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    changed = [index for index, (old, new) in enumerate(zip(before, target.text(), strict=True)) if old != new]
    assert 0 < len(changed) <= 7 * len(sites)
