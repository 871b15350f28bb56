"""Every rung of the site ladder in a real process that calls the functions all the time."""

from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target

RUNGS = {
    "short_to_hole": "jmp-rel8-hole",
    "short_by_chain": "jmp-rel8-chain",
    "punned": "jmp-punned",
    "first_a_call": "jmp-rel32",
    "behind_saved": "jmp-rel32",
    "flags_in_use": "jmp-rel32",
    "loops_to_entry": "jmp-rel32",
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
    return folder


@pytest.fixture
def climber(ladder: Path) -> Iterator[Target]:
    """The target program with two hot threads."""
    yield from run_target(ladder / "ladder")


def test_every_rung_is_taken_where_it_is_meant_to_be(ladder: Path, climber: Target) -> None:
    """The functions are laid out so that one rung is the first that fits."""
    answer = engine(climber.pid, op="check", bundle=str(ladder / "ladder.graft"))
    assert answer.code == 0, answer
    taken = {site["function"]: site["rung"] for site in answer.last["sites"]}
    assert {name: rung or taken[name] for name, rung in RUNGS.items()} == taken


def test_every_rung_is_patched_and_reverted_under_load(ladder: Path, climber: Target) -> None:
    """No call of fourteen functions on four pages gives a wrong answer; a cycle changes a thread's version twice."""
    before = climber.text()
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
    assert climber.text() == before
    climber.quit()
