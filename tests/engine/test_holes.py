"""Padding between real functions, what else may want it, and what the survey of a file makes of it."""

from collections.abc import Iterator
from pathlib import Path

import forge
import pytest

from podgraft_engine.code.holes import Holes
from podgraft_engine.survey import Surroundings, survey, table

# Five functions: padding of 8, of 8 across a page, of 2 behind a call that may return, and none.
SOURCE = """
__asm__(".intel_syntax noprefix\\n.text\\n.p2align 12\\n"
    ".macro begin name\\n .globl \\\\name\\n .type \\\\name, @function\\n\\\\name:\\n .cfi_startproc\\n.endm\\n"
    ".macro finish name\\n .cfi_endproc\\n .size \\\\name, .-\\\\name\\n.endm\\n"
    "begin first\\n mov eax, 1\\n ret\\n finish first\\n .skip 8, 0x90\\n"
    "begin second\\n .skip 4077, 0x90\\n ret\\n finish second\\n .skip 8, 0xcc\\n"
    "begin third\\n call first\\n finish third\\n .skip 2, 0x90\\n"
    "begin fourth\\n ret\\n finish fourth\\n"
    "begin fifth\\n ret\\n finish fifth\\n"
    ".att_syntax\\n");
int main(void) { return 0; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("holes")
    (folder / "holes.c").write_text(SOURCE)
    return forge.compile_program(folder / "holes.c", folder / "holes")


@pytest.fixture
def around(program: Path) -> Iterator[Surroundings]:
    with program.open("rb") as stream:
        yield Surroundings(stream, str(program))


@pytest.fixture
def start(around: Surroundings) -> int:
    """The address of `first`, which begins a page."""
    symbols = around.module.elf.get_section_by_name(".symtab")
    return around.module.bias + int(symbols.get_symbol_by_name("first")[0]["st_value"])


def test_padding_is_offered_up_to_the_next_function(around: Surroundings, start: int) -> None:
    """Eight bytes behind `first`: for five bytes the lowest and the highest place."""
    assert list(around.holes(start + 2, 5)) == [start + 6, start + 9]
    assert list(around.holes(start + 2, 9)) == []
    assert around.padding(start + 6) == 8


def test_a_hole_never_crosses_a_page(around: Surroundings, start: int) -> None:
    """The eight bytes behind `second` lie four and four on two pages."""
    assert list(around.holes(start + 4092 + 60, 5)) == []
    assert list(around.holes(start + 4092 + 60, 4)) == [start + 4092, start + 4096]
    assert around.padding(start + 4092) == 4


def test_padding_that_execution_may_fall_into_is_no_hole(around: Surroundings, start: int) -> None:
    """`third` ends with a call: nobody says that it never returns."""
    assert around.padding(start + 4105) == 0
    assert start + 4105 not in list(around.holes(start + 4140, 2))


def test_what_is_taken_is_not_offered_again(around: Surroundings, start: int) -> None:
    """Neither as a hole nor as the end of another site; what is left of a hole may serve another function."""
    holes = Holes(around.module, around.memory, set())
    holes.take(start + 6, 5)
    assert list(holes.near(start + 2, 5)) == []
    assert list(holes.near(start + 2, 3)) == [start + 11]
    assert holes.behind(start + 6) == 0
    assert not holes.is_free(start + 10, 2)
    assert holes.is_free(start + 11, 2)


def test_a_survey_counts_functions_by_rung(program: Path) -> None:
    """`fourth` and `fifth` are a byte long with nothing behind: refused, honestly; the shares of a row are whole."""
    result = survey(program, 1000)
    text = "\n".join(detail for detail, _ in result.refused)
    assert result.counts["refused"] == len(result.refused) > 0
    assert result.looked_at == result.functions > 5
    assert "(ret)" in text
    rungs = [result.counts[r] for r in ("jmp-rel32", "jmp-rel8-hole", "jmp-rel8-chain", "jmp-punned", "refused")]
    assert sum(rungs) == result.looked_at
    assert list(table([result]))[-1].startswith(f"| **all** | {result.functions} | {result.looked_at} |")


def test_a_sample_is_the_same_each_time(program: Path) -> None:
    """The seed is fixed."""
    assert survey(program, 3) == survey(program, 3)
    assert survey(program, 3).looked_at == 3
