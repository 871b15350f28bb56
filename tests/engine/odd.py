"""A target that makes its surroundings itself, and what every test of it asks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from conftest import ODD, EngineAnswer, Target, engine


def apply(target: Target, **more: object) -> EngineAnswer:
    return engine(target.pid, op="apply", bundle=str(target.program.parent / "bundle.graft"), **more)


def works(target: Target, text: bytes | None = None, tids: list[int] | None = None, *, begun: bool = False) -> None:
    """Patch and revert: all threads move, but for those that moved when it was begun; nothing is left in the text."""
    text, tids = text or target.text(), tids or target.tids()
    applied = apply(target)
    assert applied.code == 0, applied
    moved = sorted(e["tid"] for e in applied.of("migrated"))
    assert moved == tids or (begun and set(moved) < set(tids))
    new_from_now_on(target)
    reverted = engine(target.pid, op="revert", name=ODD)
    assert reverted.code == 0, reverted
    assert target.text() == text
    report = target.report()
    assert (report["wrong"], report["eintr"]) == (0, 0)


def new_from_now_on(target: Target) -> None:
    target.report()
    while (seen := target.report())["new"] == 0:
        time.sleep(0.01)
    assert seen["old"] == 0


@contextmanager
def untouched(target: Target) -> Iterator[None]:
    maps, text = target.maps(), target.text()
    yield
    assert target.maps() == maps
    assert target.text() == text
    target.report()
    while (seen := target.report())["old"] == 0:
        time.sleep(0.01)
    assert (seen["new"], seen["wrong"], seen["eintr"]) == (0, 0, 0)


def is_refused(answer: EngineAnswer, reason: str, detail: str) -> None:
    assert (answer.code, answer.last.get("reason")) == (3, reason), answer
    assert detail in answer.last["detail"]


def works_by_holding(odd: Target, text: bytes) -> None:
    """Patch and revert without a wake-up point."""
    applied = apply(odd)
    assert applied.code == 0, applied
    assert {e["how"] for e in applied.of("migrated")} == {"sleeping"}
    assert engine(odd.pid, op="revert", name=ODD).code == 0
    assert odd.text() == text
