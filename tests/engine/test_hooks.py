"""Data migration hooks: what they do, and what becomes of the program when they do it wrong."""

from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target

HOOKS = ["pre_apply", "post_apply", "pre_revert", "post_revert"]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    forge.compile_program(TARGETS / "ledger.c", folder / "ledger")
    forge.compile_object(TARGETS / "ledger_patch.c", folder / "patch.o")
    for name, limit in (("ledger", 20.0), ("hasty", 0.3)):
        forge.forge(folder / "ledger", folder / "patch.o", ["fee"], folder / f"{name}.graft", name=name, limit=limit)
    return folder


@pytest.fixture
def running(ledger: Path) -> Iterator[Target]:
    yield from run_target(ledger / "ledger")


def hooks_of(answer: object) -> list[tuple[str, bool]]:
    return [(event["kind"], event["ok"]) for event in answer.of("hook")]


def test_hooks_migrate_data_and_take_it_back(running: Target, ledger: Path) -> None:
    """New code meets the shadow variables that the first hook made; each of the four runs once in a life."""
    for life in (1, 2):
        answer = engine(running.pid, op="apply", bundle=str(ledger / "ledger.graft"))
        assert answer.code == 0, answer
        assert hooks_of(answer) == [("pre_apply", True), ("post_apply", True)]
        running.report()
        report = running.report()
        assert report["calls"] == [life, life, life - 1, life - 1]
        answer = engine(running.pid, op="revert", name="ledger")
        assert answer.code == 0, answer
        assert hooks_of(answer) == [("pre_revert", True), ("post_revert", True)]
    last = running.quit()
    assert (last["wrong"], last["changes"], last["handler"]) == (0, 16, 1)
