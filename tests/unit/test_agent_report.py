"""What an agent answers of an item: never more than all of its processes say."""

import pytest

from podgraft_agent.report import item_phase
from podgraft_api.nodepatch import Desired, Phase


@pytest.mark.parametrize(
    ("desired", "phases", "answer"),
    [
        (Desired.APPLIED, [], Phase.NOT_APPLICABLE),
        (Desired.APPLIED, [Phase.APPLIED, Phase.APPLIED], Phase.APPLIED),
        (Desired.APPLIED, [Phase.APPLIED, Phase.APPLYING], Phase.APPLYING),
        (Desired.APPLIED, [Phase.APPLIED, Phase.REFUSED], Phase.REFUSED),
        (Desired.REVERTED, [Phase.REVERTED], Phase.REVERTED),
        # The goal changed while an engine worked for the old one.
        (Desired.REVERTED, [Phase.APPLIED], Phase.PENDING),
        (Desired.APPLIED, [Phase.APPLIED, Phase.REVERTED], Phase.PENDING),
    ],
)
def test_an_item_is_done_only_when_every_process_is(desired: Desired, phases: list[Phase], answer: Phase) -> None:
    """Anything else on the way or broken shows."""
    assert item_phase(desired, phases) == answer
