"""Places for our own mappings that are taken between our look at the memory map and the mapping itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import pytest
from conftest import Target, engine, run_target

from podgraft_bundle.errors import Refusal
from podgraft_bundle.protocol import Request
from podgraft_engine import prepare
from podgraft_engine.helper import block, carrier
from podgraft_engine.helper.mailbox import CLOSED_WORD, Helper
from podgraft_engine.helper.rpc import PROT_NONE
from podgraft_engine.main import serve
from podgraft_engine.patched.state import read_state
from podgraft_engine.target import syscalls
from podgraft_engine.target.layout import PAGE, STACK_ROOM, gap_near
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Mapping, Process

FIXED_PRIVATE_ANONYMOUS = 0x100022


def living_helper(process: Process) -> Helper:
    """Create a helper as an engine would that is killed afterwards."""
    memory = Memory(process)
    blk = block.find(process, memory) or block.place(process, memory)
    return carrier.obtain_helper(process, memory, blk, 9).helper


def serve_at_once(capsys: pytest.CaptureFixture[str], **request: Any) -> list[dict[str, Any]]:
    """Run the engine in this process: a new one may take longer to start than a helper waits."""
    capsys.readouterr()
    assert serve(Request(**request)) == 0, capsys.readouterr().out
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_command_that_a_killed_engine_left_is_done_before_places_are_chosen(
    target: Target, bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was posted and the helper not woken: it would map where the next engine is about to."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name="pairs-2").code == 0
    process = Process(target.pid)
    blk = block.find(process, Memory(process))
    area = read_state(process, Memory(process), blk).document.patches[0].area
    helper = living_helper(process)
    place = gap_near(process.maps(), area, 16 * PAGE)
    words = (syscalls.MMAP, place, 16 * PAGE, PROT_NONE, FIXED_PRIVATE_ANONYMOUS, 2**64 - 1, 0)
    for index, word in enumerate(words):
        helper._box.call[index] = word
    helper._box.command = helper._box.done + 1
    helper.close()
    assert not [m for m in process.maps() if m.start == place]
    monkeypatch.setattr(prepare, "PLACES_TO_TRY", 1)
    events = serve_at_once(capsys, op="apply", pid=target.pid, bundle=bundle)
    assert [e["carrier"] for e in events if e["event"] == "prepared"] == [None]
    assert [m for m in process.maps() if m.start == place]
    assert target.report()["wrong"] == 0


def test_a_helper_that_was_told_to_leave_and_not_woken_is_replaced(
    target: Target, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine was killed between the last word and the wake-up call."""
    helper = living_helper(Process(target.pid))
    helper._box.command = CLOSED_WORD
    helper.close()
    events = serve_at_once(capsys, op="apply", pid=target.pid, bundle=bundle)
    assert [e["carrier"] for e in events if e["event"] == "prepared"] != [None]


@pytest.mark.parametrize(("below_stack", "is_room"), [(STACK_ROOM + 2**21, True), (STACK_ROOM, False)])
def test_room_for_the_stack_is_left(below_stack: int, is_room: bool) -> None:
    """Above the libraries of a large process is room, but not where its stack may grow."""

    def mapping(start: int, size: int, path: str = "") -> Mapping:
        return Mapping(start, start + size, "rw-p", 0, "00:00", 0, path)

    library = 0x7F0000000000
    stack = library + 2**20 + below_stack
    near = [mapping(library - 2**33, 2**33), mapping(library, 2**20, "/libc"), mapping(stack, 2**20, "[stack]")]
    maps = [*near, mapping(stack + 2**20, 2**33)]
    if not is_room:
        with pytest.raises(Refusal):
            gap_near(maps, library, 16 * PAGE)
    else:
        assert library + 2**20 < gap_near(maps, library, 16 * PAGE) <= stack - STACK_ROOM - 16 * PAGE


def outdated(process: Process) -> Callable[..., int]:
    """Return a gap_near that tells twice of a gap that the program has filled."""
    heap = next(m for m in process.maps() if m.path == "[heap]").start
    lies = [heap, heap]

    def gap(maps: list[Mapping], address: int, size: int, *reach: int) -> int:
        return lies.pop() if lies else gap_near(maps, address, size, *reach)

    return gap


@pytest.mark.parametrize("module", [prepare, carrier])
def test_a_place_that_was_taken_meanwhile_leads_to_another(
    target: Target, bundle: str, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New code is linked anew for the next place; another thread is borrowed for the next mailbox."""
    maps = len(target.maps())
    monkeypatch.setattr(module, "gap_near", outdated(Process(target.pid)))
    assert serve(Request(op="apply", pid=target.pid, bundle=bundle)) == 0
    monkeypatch.undo()
    report = target.report()
    assert (report["wrong"], report["eintr"]) == (0, 0)
    assert engine(target.pid, op="revert", name="pairs-2").code == 0
    # The state with its guard, the area with its three protections, the block's page: nothing of the first tries.
    assert len(target.maps()) <= maps + 8


def test_a_workspace_that_was_taken_meanwhile_goes_elsewhere(
    target: Target, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second patch of the same bundle reserves a workspace only."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name="pairs-2").code == 0
    monkeypatch.setattr(prepare, "gap_near", outdated(Process(target.pid)))
    assert serve(Request(op="apply", pid=target.pid, bundle=bundle)) == 0


def test_trampolines_of_punned_jumps_serve_again(tmp_path: Path) -> None:
    """A pun often reaches one page only, and after a revert our own trampoline still lies there."""
    programs = Path(__file__).parent.parent / "torture" / "programs"
    program = forge.compile_program(programs / "tls.c", tmp_path / "tls", "-fno-ipa-ra")
    patch = forge.compile_object(programs / "patch.c", tmp_path / "patch.o")
    bundle = str(tmp_path / "tls.graft")
    forge.forge(program, patch, ["left", "right"], tmp_path / "tls.graft")
    for target in run_target(program):
        for _ in range(2):
            applied = engine(target.pid, op="apply", bundle=bundle)
            assert applied.code == 0, applied
            target.ask("report")
            assert (target.report()["old"], target.report()["wrong"]) == (0, 0)
            assert engine(target.pid, op="revert", name="pairs-2").code == 0
