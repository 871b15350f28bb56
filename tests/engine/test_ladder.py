"""Every rung of the site ladder in a real process that calls the functions all the time."""

from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target

from podgraft_engine.helper import block
from podgraft_engine.patched.state import all_code, read_state
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process
from podgraft_engine.threads.stack import Forbidden

RUNGS = {
    "short_to_hole": "jmp-rel8-hole",
    "short_by_chain": "jmp-rel8-chain",
    "punned": "jmp-punned",
    "first_a_call": "jmp-rel32",
    "behind_saved": "jmp-rel32",
    "flags_in_use": "jmp-rel32",
    "loops_to_entry": "jmp-rel32",
    "loops_through_hole": "jmp-rel8-hole",
    "one_byte": "jmp-rel32",
    "crosses_page": "jmp-rel8-hole",
    "crosses_page_alone": "jmp-punned",
    "last_byte_of_page": "jmp-rel32",
    "landing_pad": None,
    "nops_at_entry": None,
    "nops_around_entry": None,
}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled target and its bundle."""
    folder = tmp_path_factory.mktemp("ladder")
    program = forge.compile_program(TARGETS / "ladder.c", folder / "ladder", "-fcf-protection=full")
    patch = forge.compile_object(TARGETS / "ladder_patch.c", folder / "patch.o")
    forge.forge(program, patch, list(RUNGS), folder / "ladder.graft", name="ladder")
    forge.forge(program, patch, ["rival"], folder / "rival.graft", name="rival")
    forge.forge(program, patch, ["rival"], folder / "drops.graft", name="drops", replaces=["after"])
    same = forge.compile_object(TARGETS / "ladder_patch.c", folder / "same.o", "-DADDS=1")
    forge.forge(program, same, list(RUNGS), folder / "same.graft", name="same")
    forge.forge(program, patch, list(RUNGS), folder / "after.graft", name="after", replaces=["same"])
    return folder


@pytest.fixture
def climber(ladder: Path) -> Iterator[Target]:
    """The target program with its two threads."""
    yield from run_target(ladder / "ladder")


def test_every_rung_is_taken_where_it_is_meant_to_be(ladder: Path, climber: Target) -> None:
    """The functions are laid out so that one rung is the first that fits."""
    answer = engine(climber.pid, op="check", bundle=str(ladder / "ladder.graft"))
    assert answer.code == 0, answer
    taken = {site["function"]: site["rung"] for site in answer.last["sites"]}
    assert {name: rung or taken[name] for name, rung in RUNGS.items()} == taken


def test_the_file_tells_the_same_rungs_as_the_process(ladder: Path, climber: Target) -> None:
    """What a builder learns from the file is what the process gets, and a file of another build tells nothing."""
    bundle = str(ladder / "ladder.graft")
    process = engine(climber.pid, op="check", bundle=bundle).last
    answer = engine(0, op="sites", bundle=bundle, file=str(ladder / "ladder"))
    assert (answer.code, answer.last["problems"]) == (0, [])
    assert {s["function"]: s["rung"] for s in answer.last["sites"]} == {
        s["function"]: s["rung"] for s in process["sites"]
    }
    assert {s["address"] + process["base"] for s in answer.last["sites"]} == {s["address"] for s in process["sites"]}
    assert engine(0, op="sites", bundle=bundle, file="/bin/sh").last["reason"] == "ModuleNotMapped"


def test_every_rung_is_patched_and_reverted_under_load(ladder: Path, climber: Target) -> None:
    """No call of fifteen functions on four pages gives a wrong answer; a cycle changes a thread's version twice."""
    before, threads = climber.text(), climber.tids()
    for cycle in range(1, 4):
        applied = engine(climber.pid, op="apply", bundle=str(ladder / "ladder.graft"))
        assert applied.code == 0, applied
        climber.report()
        assert climber.report()["old"] == 0
        reverted = engine(climber.pid, op="revert", name="ladder")
        assert reverted.code == 0, reverted
        climber.report()
        last = climber.report()
        assert (last["new"], last["wrong"], last["changes"]) == (0, 0, 2 * cycle)
    assert (climber.text(), climber.tids()) == (before, threads)
    climber.quit()


def test_every_rung_is_replaced_dropped_and_reverted_under_load(ladder: Path, climber: Target) -> None:
    """A patch that answers as the original, one that replaces it, one that drops all of that; each in its place."""
    before = climber.text()
    for _ in range(2):
        for name in ("same", "after", "drops"):
            answer = engine(climber.pid, op="apply", bundle=str(ladder / f"{name}.graft"))
            assert answer.code == 0, answer
            climber.report()
            last = climber.report()
            assert last["old" if name == "after" else "new"] == 0
        changed = sum(old != new for old, new in zip(before, climber.text(), strict=True))
        assert 0 < changed <= 7
        # Over another the way back is a stub of its own.
        assert engine(climber.pid, op="revert", name="drops").code == 0
        assert engine(climber.pid, op="apply", bundle=str(ladder / "same.graft")).code == 0
        assert engine(climber.pid, op="apply", bundle=str(ladder / "after.graft")).code == 0
        assert engine(climber.pid, op="revert", name="after").code == 0
        assert climber.text() == before
    climber.report()
    last = climber.report()
    assert (last["new"], last["wrong"], last["changes"]) == (0, 0, 8)
    climber.quit()


def test_endbr64_and_nops_stay_as_they_are(ladder: Path, climber: Target) -> None:
    """An indirect call must find its landing pad, and a thread between two NOPs the next one."""
    symbols = {name: climber.address_of(name) for name in ("landing_pad", "nops_at_entry", "nops_around_entry")}
    memory = Memory(Process(climber.pid))
    before = {name: memory.read(at, 9) for name, at in symbols.items()}
    assert before["nops_at_entry"] == bytes.fromhex("f30f1efa") + b"\x90" * 5
    assert engine(climber.pid, op="apply", bundle=str(ladder / "ladder.graft")).code == 0
    assert {name: memory.read(at, 4) for name, at in symbols.items()} == dict.fromkeys(symbols, b"\xf3\x0f\x1e\xfa")
    assert memory.read(symbols["nops_at_entry"], 9) == before["nops_at_entry"]
    assert memory.read(symbols["nops_around_entry"], 6) == before["nops_around_entry"][:6]


def test_a_loop_back_to_the_entry_is_old_code_wherever_the_thread_is(ladder: Path, climber: Target) -> None:
    """No migration while a signal frame holds the loop's head, or while a thread is in a hole."""
    assert engine(climber.pid, op="apply", bundle=str(ladder / "ladder.graft")).code == 0
    process = Process(climber.pid)
    memory = Memory(process)
    state = read_state(process, memory, block.find(process, memory))
    assert state is not None
    (record,) = state.document.patches
    forbidden = Forbidden([*record.old, *all_code(record)])
    for name in ("loops_to_entry", "loops_through_hole"):
        assert forbidden.as_return(climber.address_of(name)) is not None
    # Elsewhere a pointer to the function is not a call of it.
    assert forbidden.as_return(climber.address_of("behind_saved")) is None
    holes = [hole.address for site in record.sites for hole in site.holes]
    assert len(holes) >= 4
    assert all(forbidden.at_pc(hole) and forbidden.as_return(hole) and forbidden.at_pc(hole + 1) for hole in holes)


def test_a_point_may_not_be_declared_beside_a_loop_back(ladder: Path, climber: Target) -> None:
    """There a thread would migrate in the middle of a call; also not when the transition is under way already."""
    bundle = str(ladder / "ladder.graft")
    refused = engine(climber.pid, op="apply", bundle=bundle, points=["wall_1"])
    assert (refused.code, refused.last["reason"]) == (3, "NoPatchSite"), refused
    assert "branches back" in refused.last["detail"]
    assert engine(climber.pid, op="apply", bundle=bundle, deadline=0.0001).code == 4
    refused = engine(climber.pid, op="apply", bundle=bundle, points=["wall_1"])
    assert (refused.code, refused.last["reason"]) == (3, "NoPatchSite"), refused
    assert "branches back" in refused.last["detail"]
    assert engine(climber.pid, op="apply", bundle=bundle).code == 0


def test_a_declared_point_and_a_site_share_no_hole(ladder: Path, climber: Target) -> None:
    """The point is a `ret` and the padding behind it, which the function would take otherwise."""
    answer = engine(climber.pid, op="check", bundle=str(ladder / "rival.graft"), points=["short_to_hole"])
    assert (answer.code, answer.last["sites"][0]["rung"]) == (0, "jmp-punned")


def test_patches_share_a_page_and_no_hole(ladder: Path, climber: Target) -> None:
    """What one patch has taken the next goes around, also after a revert: the first may come back."""
    before = climber.text()
    first, rival = str(ladder / "ladder.graft"), str(ladder / "rival.graft")
    (alone,) = engine(climber.pid, op="check", bundle=rival).last["sites"]
    assert engine(climber.pid, op="apply", bundle=first).code == 0
    both = engine(climber.pid, op="apply", bundle=rival)
    assert both.code == 0, both
    assert (alone["rung"], both.of("inspected")[0]["sites"][0]["rung"]) == ("jmp-rel8-hole", "jmp-punned")
    assert engine(climber.pid, op="revert", name="ladder").code == 0
    assert engine(climber.pid, op="apply", bundle=first).code == 0
    assert engine(climber.pid, op="revert", name="rival").code == 0
    assert engine(climber.pid, op="revert", name="ladder").code == 0
    assert climber.text() == before
    assert climber.quit()["wrong"] == 0
