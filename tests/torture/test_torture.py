"""The short form of `make torture`: some of its programs, a few cycles each, seeded."""

import random
from pathlib import Path

import pytest

from tests.torture.torture import PROGRAMS, SEED, Bench

CYCLES = 2
CHOSEN = ("stripped", "shared library", "thread storm", "forks", "alternate stacks", "mapping and unmapping")
LEFTOVERS = ("C++ exceptions", "31 blocking calls", "system calls of its own")


@pytest.mark.engine
@pytest.mark.parametrize("name", [*CHOSEN, *LEFTOVERS])
def test_programs_under_load_do_not_notice(name: str, tmp_path: Path) -> None:
    """Nothing crashes, nothing is wrong, no call is cut short, no mapping and no thread of ours is left."""
    program = next(p for p in PROGRAMS if p.name == name)
    row = Bench(tmp_path).torture(program, CYCLES, random.Random(SEED))
    assert not row.failed, row.stories
    assert not row.refused, row.stories
    assert row.patches == CYCLES
