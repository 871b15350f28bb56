"""The short form of `make consistency`: some patches, seeded."""

from pathlib import Path

import pytest

from tests.torture.consistency import SEED, Consistency


@pytest.mark.engine
def test_functions_that_change_together_are_never_mixed(tmp_path: Path) -> None:
    """No pair is of two versions but the one during which a thread migrates, and none is late."""
    row = Consistency(tmp_path, 3, SEED).run(6)
    assert not row.failed, row
    assert row.pairs > 10_000
    assert row.changes > 3
