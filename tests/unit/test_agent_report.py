"""What an agent answers of an item: never more than all of its processes say."""

import pytest

from podgraft_agent.progress import Progress
from podgraft_agent.report import Unseen, item_phase, item_report
from podgraft_api.nodepatch import BundleRef, ContainerRef, Desired, Item, LivePatchRef, Phase, PodRef, ProcessReport
from podgraft_bundle.protocol import Migrated, Waiting


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


def item(desired: Desired) -> Item:
    return Item(
        id="lp/pod",
        version=1,
        desired=desired,
        live_patch=LivePatchRef(namespace="shop", name="lp", uid="lp"),
        bundle=BundleRef(digest="sha256:" + "0" * 64, chunks=1, name="fix", build_id="ab" * 20),
        pod=PodRef(namespace="shop", name="redis-0", uid="pod"),
        containers=(ContainerRef(name="redis", id="0" * 64), ContainerRef(name="proxy", id="1" * 64)),
    )


APPLIED = ProcessReport(container="redis", pid=7, start_time=1, phase=Phase.APPLIED)


@pytest.mark.parametrize("processes", [[], [APPLIED]])
def test_an_unseen_container_is_no_success(processes: list[ProcessReport]) -> None:
    """Neither done nor not applicable: it is waited for, then reported with its name; other trouble goes first."""
    soon = item_report(item(Desired.APPLIED), processes, looked=True, unseen=Unseen("proxy", overdue=False))
    assert (soon.phase, soon.reason) == (Phase.PENDING, "ContainerNotVisible")
    late = item_report(item(Desired.APPLIED), processes, looked=True, unseen=Unseen("proxy", overdue=True))
    assert (late.phase, late.reason) == (Phase.FAILED, "ContainerNotVisible")
    assert "container proxy" in (late.message or "")
    refused = APPLIED.model_copy(update={"phase": Phase.REFUSED, "reason": "NoPatchSite"})
    other = item_report(item(Desired.APPLIED), [refused], looked=True, unseen=Unseen("proxy", overdue=True))
    assert (other.phase, other.reason) == (Phase.REFUSED, "NoPatchSite")


def test_an_unseen_container_has_nothing_to_revert() -> None:
    """A container that is gone took its patch along: a revert is not held up by it."""
    found = item_report(item(Desired.REVERTED), [], looked=True, unseen=Unseen("redis", overdue=False))
    assert found.phase is Phase.NOT_APPLICABLE


def test_another_build_says_so() -> None:
    """NotApplicable names the build that nobody maps, without a number that changes at each look."""
    found = item_report(item(Desired.APPLIED), [], looked=True)
    assert (found.phase, found.reason) == (Phase.NOT_APPLICABLE, None)
    assert "ab" * 20 in (found.message or "")


def test_a_suspended_call_is_gone_when_a_thread_migrates() -> None:
    """Nobody migrates before, and no event of its own says so."""
    progress = Progress("app", 7, 1)
    progress.hear(Waiting(tid=0, name="suspended call", why="a call is suspended", function="weave"))
    (waiting,) = progress.report().stragglers or ()
    assert waiting.who == "suspended call"
    progress.hear(Migrated(tid=7, name="main", how="sleeping", held_us=1.0, migrated=1, total=2))
    assert not progress.report().stragglers
