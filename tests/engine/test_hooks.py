"""Data migration hooks: what they do, and what becomes of the program when they do it wrong."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target, start_engine


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    forge.compile_program(TARGETS / "ledger.c", folder / "ledger")
    forge.compile_object(TARGETS / "ledger_patch.c", folder / "patch.o")
    for name, limit in (("ledger", 60.0), ("hasty", 0.3)):
        forge.forge(folder / "ledger", folder / "patch.o", ["fee"], folder / f"{name}.graft", name=name, limit=limit)
    return folder


@pytest.fixture
def running(ledger: Path) -> Iterator[Target]:
    yield from run_target(ledger / "ledger")


def hooks_of(answer: object) -> list[tuple[str, bool]]:
    return [(event["kind"], event["ok"]) for event in answer.of("hook")]


def answers(running: Target) -> set[str]:
    """Return which answers the threads get from now on."""
    running.report()
    seen: set[str] = set()
    while not seen:
        time.sleep(0.02)
        report = running.report()
        seen = {kind for kind in ("old", "new") if report[kind]}
    return seen


def test_hooks_migrate_data_and_take_it_back(running: Target, ledger: Path) -> None:
    """New code meets the shadow variables that the first hook made; each of the four runs once."""
    answer = engine(running.pid, op="apply", bundle=str(ledger / "ledger.graft"))
    assert answer.code == 0, answer
    assert hooks_of(answer) == [("pre_apply", True), ("post_apply", True)]
    assert answers(running) == {"new"}
    assert running.report()["calls"] == [1, 1, 0, 0]
    answer = engine(running.pid, op="revert", name="ledger")
    assert answer.code == 0, answer
    assert hooks_of(answer) == [("pre_revert", True), ("post_revert", True)]
    assert answers(running) == {"old"}
    last = running.quit()
    assert (last["wrong"], last["changes"], last["handler"], last["calls"]) == (0, 8, 1, [1, 1, 1, 1])


BAD = {
    "says no": ("ledger", 42, "HookRefused", "returned 42"),
    "follows a wild pointer": ("ledger", -2, "HookFailed", "SIGSEGV in act"),
    "never returns": ("hasty", -3, "HookFailed", "ended after 0.3 s"),
}


@pytest.mark.parametrize(("name", "how", "reason", "detail"), BAD.values(), ids=BAD)
def test_a_hook_that_fails_refuses_the_patch(  # noqa: PLR0917 (a case)
    running: Target, ledger: Path, name: str, how: int, reason: str, detail: str
) -> None:
    """The program goes on as it was, with its signal handlers, and the patch can be applied later."""
    text = running.text()
    running.ask(f"behave 0 {how}")
    answer = engine(running.pid, op="apply", bundle=str(ledger / f"{name}.graft"))
    assert (answer.code, answer.last["reason"]) == (3, reason), answer
    assert detail in answer.last["detail"]
    assert hooks_of(answer) == [("pre_apply", False)]
    assert not answer.of("switched")
    assert running.text() == text
    assert running.report()["calls"] == [1, 0, 0, 0]
    running.ask("behave 0 0")
    assert engine(running.pid, op="apply", bundle=str(ledger / f"{name}.graft")).code == 0
    last = running.quit()
    assert (last["wrong"], last["handler"], last["calls"]) == (0, 1, [2, 1, 0, 0])


def test_the_other_hooks_fail_in_their_own_way(running: Target, ledger: Path) -> None:
    """After an apply and after a revert failures are told and change nothing; before a revert they refuse it."""
    bundle = str(ledger / "ledger.graft")
    running.ask("behave 1 5")
    answer = engine(running.pid, op="apply", bundle=bundle)
    assert (answer.code, hooks_of(answer)) == (0, [("pre_apply", True), ("post_apply", False)])
    assert "returned 5" in answer.of("hook")[1]["why"]
    running.ask("behave 2 7")
    answer = engine(running.pid, op="revert", name="ledger")
    assert (answer.code, answer.last["reason"]) == (3, "HookRefused")
    assert answers(running) == {"new"}
    running.ask("behave 2 0")
    running.ask("behave 3 -2")
    answer = engine(running.pid, op="revert", name="ledger")
    assert (answer.code, hooks_of(answer)) == (0, [("pre_revert", True), ("post_revert", False)])
    assert running.report()["calls"] == [1, 1, 2, 1]
    assert engine(running.pid, op="apply", bundle=bundle).code == 0
    answer = engine(running.pid, op="revert", name="ledger", skip_hooks=True)
    assert (answer.code, hooks_of(answer)) == (0, [])
    last = running.quit()
    assert (last["wrong"], last["handler"], last["calls"]) == (0, 1, [2, 2, 2, 1])


# Where engines are killed in each life of the patch: every step of a hook, of the first or the second one of a run.
KILLS = [
    {"apply": "HOOK_POSTED:1", "revert": "HOOK_ENTERED:2"},
    {"apply": "HOOK_ENDED:2", "revert": "HOOK_RUNNING:1"},
    {"apply": "HOOK_NOTED:1"},
]


def test_engines_killed_at_every_step_of_a_hook_never_call_one_twice(running: Target, ledger: Path) -> None:
    """The next engine knows from the process what was called, and goes on."""
    requests = {"apply": {"bundle": str(ledger / "ledger.graft")}, "revert": {"name": "ledger"}}
    for step in ("ROOM_MAPPED", "ARENA_MAPPED"):
        assert killed_at(running, step, op="apply", **requests["apply"])
    for life, steps in enumerate(KILLS, 1):
        for op, calls in (("apply", [life, life, life - 1, life - 1]), ("revert", [life] * 4)):
            if op in steps:
                assert killed_at(running, steps[op], op=op, **requests[op]), steps
            answer = engine(running.pid, op=op, deadline=60, **requests[op])
            assert answer.code == 0, (steps, answer)
            assert running.report()["calls"] == calls, steps
    last = running.quit()
    assert (last["wrong"], last["handler"]) == (0, 1)


def killed_at(running: Target, step: str, **request: str) -> bool:
    prefix = ("env", f"PODGRAFT_STOP_AT={step}")
    return engine(running.pid, prefix=prefix, **request).code == -signal.SIGKILL


@pytest.mark.parametrize(("name", "how", "ends_well"), [("ledger", -1, True), ("hasty", -3, False)])
def test_a_hook_outlives_its_engine_and_the_next_one_watches_over_it(
    running: Target, ledger: Path, name: str, how: int, *, ends_well: bool
) -> None:
    """A hook under way is waited for, up to its limit, and not called again."""
    running.ask(f"behave 0 {how}")
    bundle = str(ledger / f"{name}.graft")
    assert killed_at(running, "HOOK_RUNNING", op="apply", bundle=bundle)
    wait_for_call(running)
    child = start_engine(running.pid, op="apply", bundle=bundle, deadline=60)
    if ends_well:
        time.sleep(0.5)
        assert child.poll() is None
        running.ask("go")
    said, _ = child.communicate(timeout=60)
    assert child.returncode == (0 if ends_well else 3), said
    assert ("ended after 0.3 s" in said) is not ends_well
    last = running.quit()
    assert (last["wrong"], last["calls"][0]) == (0, 1)


def test_a_child_forked_in_the_middle_of_a_hook_says_so(running: Target, ledger: Path) -> None:
    """The child has half of the hook's work and nobody who goes on with it: it is not called again, and not hidden."""
    running.ask("behave 0 -1")
    bundle = str(ledger / "ledger.graft")
    engine_of_parent = start_engine(running.pid, op="apply", bundle=bundle, deadline=60)
    wait_for_call(running)
    child = int(running.ask("fork"))
    try:
        answer = engine(child, op="apply", bundle=bundle, deadline=60)
        assert (answer.code, answer.last["reason"]) == (3, "HookCutOff"), answer
        running.ask("go")
        engine_of_parent.communicate(timeout=60)
        assert engine_of_parent.returncode == 0
        assert running.report()["calls"] == [1, 1, 0, 0]
    finally:
        os.kill(child, signal.SIGKILL)


def wait_for_call(running: Target) -> None:
    until = time.monotonic() + 20
    while running.report()["calls"][0] == 0:
        assert time.monotonic() < until
        time.sleep(0.01)
