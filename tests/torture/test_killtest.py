"""The short form of `make killtest`: kills at every kind of step, seeded."""

import os
from pathlib import Path

import pytest

from tests.torture.killtest import SEED, Campaign, Tally
from tests.torture.subjects import Crowd, Successor


@pytest.mark.engine
@pytest.mark.parametrize(("subject", "kills"), [(Crowd, 45), (Successor, 15)])
def test_engines_are_killed_at_their_steps_and_nobody_notices(subject: type[Crowd], kills: int, tmp_path: Path) -> None:
    """No crash, no wrong result, no stuck thread, and each chain of kills ends in a clean apply or revert."""
    tally = Campaign(subject, tmp_path, int(os.environ.get("PODGRAFT_SEED", SEED)), Tally()).run(kills)
    assert not tally.failures, tally.stories
    assert tally.kills >= kills
    assert len(tally.steps) > kills // 3
