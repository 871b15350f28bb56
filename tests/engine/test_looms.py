"""Calls that are suspended on stacks which no thread is on: ucontext, jump buffers, a switch of one's own making."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target, start_engine

from podgraft_engine.code.switching import find_switching
from podgraft_engine.target.module import modules_of
from podgraft_engine.target.proc import Process

SWITCH = TARGETS / "looms_switch.c"
KINDS = {
    "ucontext": (),
    "jumps": ("-DJUMPS",),
    "by-hand": ("-DBY_HAND", str(SWITCH)),
    "by-hand-frames": ("-DBY_HAND", str(SWITCH), "-fno-omit-frame-pointer"),
    "by-hand-after": ("-DBY_HAND", "-DAFTER", str(SWITCH)),
    "ucontext-static": ("-static",),
    "by-hand-static": ("-DBY_HAND", str(SWITCH), "-static"),
}
WEAVERS = [(kind, place) for kind in ("ucontext", "by-hand") for place in ("mmap", "local")]
WEAVERS += [("jumps", "malloc"), ("by-hand", "malloc"), ("by-hand-library", "static")]
WEAVERS += [("by-hand-frames", "mmap"), ("by-hand-after", "mmap")]


@pytest.fixture(scope="module")
def woven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs and their bundles."""
    folder = tmp_path_factory.mktemp("looms")
    patch = forge.compile_object(TARGETS / "looms_patch.c", folder / "patch.o")
    library = forge.compile_program(SWITCH, folder / "libswitch.so", "-shared", "-fPIC")
    for kind, flags in {**KINDS, "by-hand-library": ("-DBY_HAND", "-Wl,--no-as-needed", str(library))}.items():
        program = forge.compile_program(TARGETS / "looms.c", folder / kind, *flags)
        forge.forge(program, patch, ["weave"], folder / f"{kind}.graft", name="looms")
        forge.forge(program, patch, ["loops"], folder / f"{kind}-loops.graft", name="loops")
    return folder


@pytest.fixture(params=WEAVERS, ids="-".join)
def weaver(woven: Path, request: pytest.FixtureRequest) -> Iterator[Target]:
    kind, place = request.param
    yield from run_target(woven / kind, place)


def test_a_suspended_call_is_waited_for_and_named(weaver: Target) -> None:
    """Nobody migrates while a call of the old function is suspended, nor back while one of the new is."""
    bundle = f"{weaver.program}.graft"
    assert [weaver.ask("leave 0"), weaver.ask("pass 1")] == ["0", "1"]
    first = engine(weaver.pid, op="apply", bundle=bundle, deadline=1)
    assert first.code == 4, first
    assert not first.of("migrated")
    assert {(e["tid"], e["function"]) for e in first.of("waiting")} == {(0, "weave")}
    assert "suspended on a stack that no thread is on" in first.last["detail"]
    assert weaver.ask("back 0") == "1"
    assert engine(weaver.pid, op="apply", bundle=bundle).code == 0
    assert [weaver.ask("weave"), weaver.ask("pass 0")] == ["2", "2"]
    weaver.ask("leave 1")
    back = engine(weaver.pid, op="revert", name="looms", deadline=1)
    assert back.code == 4, back
    assert not back.of("migrated")
    assert weaver.ask("back 1") == "2"
    assert engine(weaver.pid, op="revert", name="looms").code == 0
    assert [weaver.ask("weave"), weaver.ask("pass 1")] == ["1", "1"]


def test_a_call_that_is_suspended_while_threads_migrate(woven: Path) -> None:
    """The only thread is on another stack when the engine looks first; then it calls, leaves, and migrates."""
    for weaver in run_target(woven / "ucontext", "mmap"):
        weaver.child.stdin.write("wait 0\n")
        weaver.child.stdin.flush()
        child = start_engine(weaver.pid, op="apply", bundle=f"{weaver.program}.graft", deadline=5)
        for line in child.stdout:
            if '"waiting"' in line:
                break
        assert weaver.ask("go") == "0"
        events = [json.loads(line) for line in child.stdout]
        assert child.wait() == 4, events
        assert [e["tid"] for e in events if e["event"] == "migrated"] == [weaver.pid]
        assert "suspended on a stack that no thread is on" in events[-1]["detail"]
        assert weaver.ask("back 0") == "1"
        assert engine(weaver.pid, op="apply", bundle=f"{weaver.program}.graft").code == 0


def test_a_thread_that_sleeps_on_another_stack_may_have_calls_on_its_own(weaver: Target) -> None:
    """Its own stack lies elsewhere, or below the other one, which is a part of a frame of it."""
    bundle = f"{weaver.program}.graft"
    weaver.child.stdin.write("hold\n")
    weaver.child.stdin.flush()
    first = engine(weaver.pid, op="apply", bundle=bundle, deadline=1)
    assert first.code == 4, first
    assert not first.of("migrated")
    assert weaver.ask("go") == "1"
    assert engine(weaver.pid, op="apply", bundle=bundle).code == 0
    assert weaver.ask("weave") == "2"


def test_what_calls_have_left_behind_is_no_obstacle(weaver: Target) -> None:
    """Return addresses below the place where a stack is suspended now, and a context that was left inside a call."""
    bundle = f"{weaver.program}.graft"
    for command in ("pass 0", "pass 1", "leave 2", "back 2", "drive", "weave"):
        weaver.ask(command)
    applied = engine(weaver.pid, op="apply", bundle=bundle)
    assert applied.code == 0, applied
    assert not applied.of("waiting")
    assert weaver.ask("drive") == "2"
    assert engine(weaver.pid, op="revert", name="looms").code == 0


@pytest.mark.parametrize(("kind", "place"), [("ucontext", "local"), ("by-hand", "mmap")])
def test_the_stack_of_another_thread_than_the_first(woven: Path, kind: str, place: str) -> None:
    """The thread that weaves has a stack of its own, in one mapping with its control block."""
    bundle = str(woven / f"{kind}.graft")
    for weaver in run_target(woven / kind, place, "threaded"):
        for command in ("pass 0", "drive"):
            weaver.ask(command)
        assert engine(weaver.pid, op="apply", bundle=bundle).code == 0
        assert engine(weaver.pid, op="revert", name="looms").code == 0
        weaver.ask("leave 0")
        assert engine(weaver.pid, op="apply", bundle=bundle, deadline=1).code == 4


@pytest.mark.parametrize("kind", [*KINDS, "by-hand-library"])
def test_a_program_that_switches_stacks_is_known_by_its_code(woven: Path, kind: str, built: Path) -> None:
    """Others are not: what says so costs time that grows with the process."""
    for target, expected in ((woven / kind, True), (built / "pairs", False)):
        for program in run_target(target, "mmap") if expected else run_target(target, "0", "1"):
            assert (find_switching(modules_of(Process(program.pid))) is not None) == expected


def test_a_process_with_much_code_of_others_switches_no_stacks() -> None:
    """This one: Python, OpenSSL, libffi, extensions in C and Rust."""
    modules = modules_of(Process(os.getpid()))
    assert any(module.name.startswith("_pydantic_core") for module in modules)
    assert find_switching(modules) is None


def test_a_static_program_without_other_stacks(tmp_path: Path) -> None:
    """Its C library jumps and binds, which is no switch of stacks."""
    program = forge.compile_program(TARGETS / "pairs.c", tmp_path / "pairs", "-static")
    for target in run_target(program, "0", "1"):
        assert find_switching(modules_of(Process(target.pid))) is None


def test_a_branch_back_to_the_site_is_refused_beside_other_stacks(woven: Path) -> None:
    """A call that is suspended while all migrate would go on in new code, in the middle of its work."""
    for weaver in run_target(woven / "ucontext", "mmap"):
        before = weaver.text()
        refused = engine(weaver.pid, op="apply", bundle=f"{weaver.program}-loops.graft")
        assert refused.code == 3, refused
        assert refused.last["reason"] == "NoPatchSite"
        assert "suspended" in refused.last["detail"]
        assert weaver.text() == before
