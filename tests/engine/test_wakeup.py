"""Threads that migrate themselves: at wake-up points, when they are nudged, and at declared points."""

import json
import subprocess
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target

from podgraft_engine.helper import block
from podgraft_engine.patched.state import read_state
from podgraft_engine.target.layout import PAGE
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process
from podgraft_engine.wakeup import routine

SOURCE = Path(__file__).parents[2] / "nodeagent" / "podgraft_engine" / "wakeup" / "asm" / "wake.S"


def small(folder: Path, name: str) -> Path:
    """Compile a target with one function, `answer`, and a bundle that replaces it."""
    forge.compile_program(TARGETS / f"{name}.c", folder / name)
    forge.compile_object(TARGETS / "waiters_patch.c", folder / "patch.o")
    forge.forge(folder / name, folder / "patch.o", ["answer"], folder / f"{name}.graft", name="waiters")
    return folder / name


@pytest.fixture
def waiters(tmp_path: Path) -> Iterator[Target]:
    """Six threads that wait for ever."""
    yield from run_target(small(tmp_path, "waiters"))


@pytest.fixture
def cancelled(tmp_path: Path) -> Iterator[Target]:
    """Threads that are cancelled all the time."""
    yield from run_target(small(tmp_path, "cancelled"))


def ways(target: Target, **request: object) -> dict[str, str]:
    """Apply or revert; return how each thread migrated, by its name."""
    answer = engine(target.pid, **request)
    assert answer.code == 0, answer
    names = {tid: Path(f"/proc/{target.pid}/task/{tid}/comm").read_text().strip() for tid in target.tids()}
    return {names[e["tid"]]: e["how"] for e in answer.of("migrated")}


def test_the_routine_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    """`make asm` writes wake.bin, and the engine fills it in where the labels are."""
    subprocess.run(["gcc", "-c", "-o", tmp_path / "wake.o", SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "wake.o", tmp_path / "wake.bin"], check=True)
    committed = resources.files("podgraft_engine.wakeup").joinpath("asm/wake.bin").read_bytes()
    assert (tmp_path / "wake.bin").read_bytes() == committed
    listed = subprocess.run(["nm", tmp_path / "wake.o"], check=True, capture_output=True, text=True).stdout
    labels = {line.split()[2]: int(line.split()[0], 16) for line in listed.splitlines()}
    wanted = (routine.BACK, routine.SLOW, routine.CHECK, routine.DATA, routine.LOG_AT, routine.LOG_ENTRIES)
    assert tuple(labels[n] for n in ("back", "slow", "check", "data", "LOG", "LOG_ENTRIES")) == wanted
    assert len(committed) <= routine.CELL


def test_threads_that_wake_migrate_themselves(target: Target, bundle: str) -> None:
    """Those that sleep now and then are never held, on the way there and back; the text is the file's own again."""
    before = target.text()
    for request in ({"op": "apply", "bundle": bundle}, {"op": "revert", "name": "pairs-2"}):
        answer = engine(target.pid, **request)
        assert answer.code == 0, answer
        themselves = [e for e in answer.of("migrated") if e["how"] == "wakeup"]
        assert len(themselves) >= 3, answer
        assert {e["held_us"] for e in themselves} == {0.0}
    assert target.text() == before
    last = target.quit()
    assert (last["wrong"], last["eintr"], last["changes"]) == (0, 0, 2)


def test_the_log_of_who_came_by_is_given_back(target: Target, bundle: str) -> None:
    """With 10,000 threads it is more than half of what a patch adds to a process."""
    assert engine(target.pid, op="apply", bundle=bundle).of("finalized")[0]["how"]["wakeup"] >= 3
    process = Process(target.pid)
    memory = Memory(process)
    areas = read_state(process, memory, block.find(process, memory)).document.wake
    assert areas
    for area in areas:
        log = range(area.data + routine.LOG_AT, area.data + routine.DESCRIPTORS_AT, PAGE)
        assert not any(memory.anonymous(page) for page in log)


def test_who_wakes_inside_a_replaced_function_does_not_migrate(target: Target, bundle: str) -> None:
    """It comes by a point every 5 ms with the function on its stack; it migrates when it has left (invariant 2)."""
    tid = int(target.ask("tid"))
    target.ask("restless")
    target.ask("linger")
    first = engine(target.pid, op="apply", bundle=bundle, deadline=5)
    assert first.code == 4, first
    assert tid not in {e["tid"] for e in first.of("migrated")}
    assert first.of("waiting")[-1]["function"] == "linger"
    target.ask("go on")
    time.sleep(0.2)
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert target.quit()["changes"] == 1


def test_who_wakes_in_a_handler_on_an_alternate_stack_does_not_migrate(target: Target, bundle: str) -> None:
    """The interrupted call of a replaced function lies below the handler's stack pointer, where nobody looks."""
    tid = int(target.ask("tid"))
    target.ask("linger")
    target.ask("restless")
    target.ask("handle")
    first = engine(target.pid, op="apply", bundle=bundle, deadline=5)
    assert first.code == 4, first
    assert tid not in {e["tid"] for e in first.of("migrated")}
    target.ask("leave")
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert target.quit()["changes"] == 1


def test_at_a_declared_point_a_thread_migrates_whatever_is_on_its_stack(target: Target, bundle: str) -> None:
    """The user says that `look` is a point of quiescence, though it is called by a replaced function."""
    target.ask("restless")
    target.ask("linger")
    answer = engine(target.pid, op="apply", bundle=bundle, points=["look"])
    assert answer.code == 0, answer
    tid = int(target.ask("tid"))
    # On a busy machine the engine may look at it before it looks at the log: then it finds the work done.
    assert {e["tid"]: e["how"] for e in answer.of("migrated")}[tid] in {"point", "inherited"}


@pytest.mark.parametrize(("point", "reason"), [("no_such_function", "UnresolvedReference"), ("linger", "NoPatchSite")])
def test_a_bad_declared_point_is_refused(target: Target, bundle: str, point: str, reason: str) -> None:
    """One that is not there, and one that is replaced itself; nothing is touched."""
    maps = target.maps()
    answer = engine(target.pid, op="apply", bundle=bundle, points=[point])
    assert (answer.code, answer.last["reason"]) == (3, reason)
    assert target.maps() == maps


def test_who_waits_inside_glibc_is_nudged_and_goes_on_waiting(waiters: Target) -> None:
    """Locks, conditions, semaphores and joins wake without a reason; no wait of the program ends for it."""
    bundle = str(waiters.program.with_suffix(".graft"))
    for request in ({"op": "apply", "bundle": bundle}, {"op": "revert", "name": "waiters"}):
        how = ways(waiters, **request)
        assert {name: how[name] for name in ("cond", "mutex", "sem", "join")} == dict.fromkeys(
            ("cond", "mutex", "sem", "join"), "wakeup"
        )
        assert (how["futex"], how["aio"]) == ("sleeping", "sleeping")
    assert json.loads(waiters.ask("report")) == {"ended": 0, "answer": 1}


def test_no_cancelled_thread_loses_its_clean_up(cancelled: Target) -> None:
    """In glibc before 2.41 a cancelled thread is unwound from where it stands: no point may lie there."""
    bundle = str(cancelled.program.with_suffix(".graft"))
    for _ in range(3):
        assert engine(cancelled.pid, op="apply", bundle=bundle).code == 0
        assert engine(cancelled.pid, op="revert", name="waiters").code == 0
    last = cancelled.quit()
    assert last["cancelled"] > 500
    assert last["cancelled"] == last["cleaned"]
