"""Several patches in one process: side by side, over each other, and one that replaces others."""

import time
from collections.abc import Iterator
from pathlib import Path

import forge
import pytest
from conftest import PAIR_FUNCTIONS, TARGETS, Target

from tests.torture.engines import Outcome, run

ORIGINAL, FIRST, SECOND = (1 << version for version in (1, 2, 3))


class Lab:
    """A program, bundles of its functions in several versions, and engines that start in milliseconds."""

    def __init__(self, built: Path, folder: Path, target: Target) -> None:
        self._built, self._folder, self.target = built, folder, target

    def bundle(self, name: str, version: int, functions: list[str] = PAIR_FUNCTIONS, **more: list[str]) -> Path:
        """Make a bundle whose functions answer with a version."""
        out = self._folder / f"{name}-{version}.graft"
        relocatable = self._folder / f"{version}.o"
        forge.compile_object(TARGETS / "pairs_patch.c", relocatable, f"-DVERSION={version}")
        forge.forge(self._built / "pairs", relocatable, functions, out, name=name, **more)
        return out

    def apply(self, bundle: Path, deadline: float = 30) -> Outcome:
        return run(self._folder, op="apply", pid=self.target.pid, bundle=str(bundle), deadline=deadline)

    def revert(self, name: str) -> Outcome:
        return run(self._folder, op="revert", pid=self.target.pid, name=name, deadline=30)

    def status(self) -> dict[str, str]:
        """Return the patches in the process and their phases."""
        (event,) = run(self._folder, op="status", pid=self.target.pid).events
        return {patch["name"]: patch["phase"] for patch in event["patches"]}

    def seen(self) -> int:
        """Return the versions that threads see now, a bit for each."""
        self.target.report()
        time.sleep(0.2)
        return self.target.report()["seen"]

    def changes(self) -> int:
        """Return how often a thread has changed from one version to another."""
        return self.target.report()["changes"]


@pytest.fixture
def lab(built: Path, target: Target, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(built, tmp_path, target)
    yield lab
    if target.child.poll() is None:
        last = target.quit()
        assert (last["wrong"], last["eintr"]) == (0, 0)


def test_a_cumulative_patch_takes_each_thread_from_one_version_to_the_next(lab: Lab) -> None:
    """No thread sees the original code in between; the first patch has gone; a revert leads to the original."""
    text = lab.target.text()
    assert lab.apply(lab.bundle("fix", 2)).code == 0
    assert (lab.seen(), lab.changes()) == (FIRST, 1)
    outcome = lab.apply(lab.bundle("better", 3, replaces=["fix"]))
    assert outcome.code == 0, outcome
    assert lab.status() == {"better": "finalized"}
    assert (lab.seen(), lab.changes()) == (SECOND, 2)
    assert lab.revert("fix").reason == "NotApplied"
    assert lab.revert("better").code == 0
    assert (lab.seen(), lab.changes()) == (ORIGINAL, 3)
    assert lab.status() == {}
    assert lab.target.text() == text


def test_a_new_version_under_the_same_name_replaces_the_old_one(lab: Lab) -> None:
    """The name in `replaces` may be the bundle's own; without it the new version is refused."""
    assert lab.apply(lab.bundle("fix", 2)).code == 0
    assert lab.apply(lab.bundle("fix", 3)).reason == "ConflictingPatch"
    assert lab.apply(lab.bundle("fix", 3, replaces=["fix"])).code == 0
    assert lab.status() == {"fix": "finalized"}
    assert (lab.seen(), lab.changes()) == (SECOND, 2)


def test_what_a_cumulative_patch_does_not_bring_goes_back(lab: Lab) -> None:
    """A function of the replaced patch alone is the original again, and its place in the text the file's."""
    text = lab.target.text()
    assert lab.apply(lab.bundle("fix", 2)).code == 0
    assert lab.apply(lab.bundle("less", 3, ["left"], replaces=["fix"])).code == 0
    assert lab.seen() == ORIGINAL | SECOND
    assert lab.status() == {"less": "finalized"}
    changed = sum(old != new for old, new in zip(text, lab.target.text(), strict=True))
    assert 0 < changed <= 7
    assert lab.revert("less").code == 0
    assert lab.target.text() == text


def test_a_cumulative_patch_replaces_several(lab: Lab) -> None:
    """Two patches beside each other become one."""
    text = lab.target.text()
    assert lab.apply(lab.bundle("one", 2, ["left"])).code == 0
    assert lab.apply(lab.bundle("two", 2, ["right", "linger"])).code == 0
    assert lab.apply(lab.bundle("both", 3, replaces=["one", "two"])).code == 0
    assert (lab.seen(), lab.status()) == (SECOND, {"both": "finalized"})
    assert lab.revert("both").code == 0
    assert lab.target.text() == text


def test_an_unfinished_replacement_leads_back_to_what_it_was_to_replace(lab: Lab) -> None:
    """While a thread lags, a revert brings the first patch back, not the original code."""
    text = lab.target.text()
    assert lab.apply(lab.bundle("fix", 2)).code == 0
    lab.target.ask("handle")
    less = lab.bundle("less", 3, ["left", "right"], replaces=["fix"])
    assert lab.apply(less, deadline=1.5).code == 4
    assert lab.status() == {"fix": "finalized", "less": "migrating"}
    assert lab.revert("fix").reason == "Busy"
    lab.target.ask("leave")
    assert lab.revert("less").code == 0
    assert (lab.seen(), lab.status()) == (FIRST, {"fix": "finalized"})
    assert lab.apply(less).code == 0
    assert (lab.seen(), lab.status()) == (ORIGINAL | SECOND, {"less": "finalized"})
    assert lab.revert("less").code == 0
    assert lab.target.text() == text


def test_a_patch_over_another_hides_it_until_it_is_reverted(lab: Lab) -> None:
    """The lower one cannot be reverted before; it is not lost, and applying it again changes nothing."""
    text = lab.target.text()
    fix = lab.bundle("fix", 2)
    assert lab.apply(fix).code == 0
    assert lab.apply(lab.bundle("upper", 3, over=["fix"])).code == 0
    assert lab.status() == {"fix": "finalized", "upper": "finalized"}
    assert lab.revert("fix").reason == "ConflictingPatch"
    assert [event["event"] for event in lab.apply(fix).events] == ["finalized"]
    assert (lab.seen(), lab.changes()) == (SECOND, 2)
    assert lab.revert("upper").code == 0
    assert (lab.seen(), lab.changes()) == (FIRST, 3)
    assert lab.revert("fix").code == 0
    assert (lab.seen(), lab.changes()) == (ORIGINAL, 4)
    assert lab.target.text() == text


def test_a_patch_with_another_over_it_is_not_replaced_alone(lab: Lab) -> None:
    """The upper one was made for the lower one: they go together or not at all."""
    assert lab.apply(lab.bundle("fix", 2)).code == 0
    assert lab.apply(lab.bundle("upper", 3, ["left"], over=["fix"])).code == 0
    assert lab.apply(lab.bundle("better", 4, ["right"], replaces=["fix"])).reason == "ConflictingPatch"
    assert lab.apply(lab.bundle("better", 4, over=["fix"], replaces=["upper"])).code == 0
    assert lab.status() == {"fix": "finalized", "better": "finalized"}
    assert lab.seen() == 1 << 4
    assert lab.revert("better").code == 0
    assert lab.seen() == FIRST


@pytest.mark.parametrize("order", [["one", "two"], ["two", "one"]])
def test_patches_beside_each_other_are_reverted_in_any_order(lab: Lab, order: list[str]) -> None:
    """They share pages: the text is the file's only when both have gone, and no more is mapped than the first time."""
    text = lab.target.text()
    bundles = [lab.bundle("one", 2, ["left"]), lab.bundle("two", 3, ["right", "linger"])]
    counts = []
    for _ in range(3):
        assert all(lab.apply(bundle).code == 0 for bundle in bundles)
        assert lab.seen() == FIRST | SECOND
        assert lab.revert(order[0]).code == 0
        assert lab.seen() == ORIGINAL | (FIRST if order[1] == "one" else SECOND)
        assert lab.target.text() != text
        assert lab.revert(order[1]).code == 0
        assert lab.target.text() == text
        counts.append(len(lab.target.maps()))
    assert counts[1:] == [counts[0]] * 2


def test_replacing_again_and_again_leaves_nothing_behind(lab: Lab) -> None:
    """The areas of the first round serve again."""
    first, second = lab.bundle("fix", 2), lab.bundle("better", 3, replaces=["fix"])
    counts = []
    for _ in range(3):
        assert (lab.apply(first).code, lab.apply(second).code, lab.revert("better").code) == (0, 0, 0)
        counts.append(len(lab.target.maps()))
    assert counts[1:] == [counts[0]] * 2


def test_after_a_revert_another_patch_may_have_the_same_function(lab: Lab) -> None:
    """What a patch that is gone keeps for the next time is in nobody's way."""
    for turn in range(2):
        for version, name in ((2, "fix"), (3, "other")):
            assert lab.apply(lab.bundle(name, version)).code == 0, turn
            assert lab.seen() == 1 << version
            assert lab.revert(name).code == 0
