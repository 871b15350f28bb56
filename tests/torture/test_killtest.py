"""The short form of `make killtest`: kills at every kind of step, seeded."""

import os
from pathlib import Path

import pytest

from tests.torture.killtest import SEED, Campaign, Tally
from tests.torture.subjects import Crowd

KILLS = 45


@pytest.mark.engine
def test_engines_are_killed_at_their_steps_and_nobody_notices(tmp_path: Path) -> None:
    """No crash, no wrong result, no stuck thread, and each chain of kills ends in a clean apply or revert."""
    tally = Campaign(Crowd, tmp_path, int(os.environ.get("PODGRAFT_SEED", SEED)), Tally()).run(KILLS)
    assert not tally.failures, tally.stories
    assert tally.kills >= KILLS
    assert len(tally.steps) > KILLS // 3
