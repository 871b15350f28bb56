"""Who goes first where two LivePatches patch the same functions."""

from dataclasses import replace

import pytest

from podgraft_api.livepatch import BundleInfo, LivePatchSpec
from podgraft_api.nodepatch import BundleRef, ContainerRef, Desired, Item, ItemReport, LivePatchRef, Phase, PodRef
from podgraft_operator.bundles import Resolved
from podgraft_operator.conflicts import Claim, arbitrate, clash, goes_first
from podgraft_operator.placement import Placed, Target

POD = PodRef(namespace="shop", name="p", uid="pod")
TARGET = Target("n", POD, (ContainerRef(name="redis", id="ab" * 32),), labels={"app": "redis"})


def resolved(name: str, *functions: int, build: str = "ab", replaces: tuple[str, ...] = ()) -> Resolved:
    digest = "sha256:" + name[0] * 64
    ref = BundleRef(digest=digest, chunks=1, name=name, build_id=build * 20, replaces=replaces)
    info = BundleInfo(digest=digest, name=name, version="1")
    return Resolved(ref, info, frozenset(functions))


def claim(bundle: Resolved, second: int, containers: tuple[str, ...] = (), app: str = "redis") -> Claim:
    body = {"bundle": {"inline": "QUJD"}, "selector": {"matchLabels": {"app": app}}, "containers": list(containers)}
    spec = LivePatchSpec.model_validate(body)
    return Claim(f"uid-{bundle.ref.name}", bundle.ref.name, f"2026-01-01T00:00:0{second}Z", spec, bundle)


def placed(one: Claim, desired: Desired = Desired.APPLIED, phase: Phase | None = None) -> Placed:
    ref = LivePatchRef(namespace="shop", name=one.name, uid=one.uid)
    item = Item(
        id=f"{one.uid}/pod", version=1, desired=desired, live_patch=ref,
        bundle=one.bundle.ref, pod=POD, containers=TARGET.containers,
    )  # fmt: skip
    return Placed("n", item, ItemReport(id=item.id, version=1, phase=phase) if phase else None)


A, B = claim(resolved("a", 1, 2), 1), claim(resolved("b", 2, 3), 2)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (resolved("b", 2), True),
        (resolved("b", 3), False),
        (resolved("b", 2, build="cd"), False),
        (resolved("a", 2), False),
        (resolved("b", 3, replaces=("a",)), True),
        (replace(resolved("b", 3), ref=resolved("b").ref.model_copy(update={"name": "a"})), True),
    ],
)
def test_clash(other: Resolved, expected: bool) -> None:
    """Bundles clash by a function of the same build, or by name; the same bundle twice is no clash."""
    assert clash(A.bundle, other) is expected
    assert clash(other, A.bundle) is expected


def test_older_goes_first_but_for_one_that_replaces_it() -> None:
    """Age decides, of one second the name, and a cumulative bundle comes before what it contains."""
    assert goes_first(A, B)
    assert not goes_first(B, A)
    assert goes_first(A, replace(B, created=A.created))
    cumulative = claim(resolved("b", 2, 3, replaces=("a",)), 2)
    assert goes_first(cumulative, A)
    assert not goes_first(A, cumulative)


@pytest.mark.parametrize(
    ("mine", "other", "items", "expected"),
    [
        (B, A, [], "a"),
        (A, B, [], None),
        (A, B, [placed(B)], "b"),
        (B, A, [placed(B)], None),
        (A, B, [placed(B, Desired.REVERTED)], "b"),
        (A, B, [placed(B, Desired.REVERTED, Phase.REVERTED)], None),
        (B, replace(A, wants=False), [], None),
        (B, replace(A, wants=False), [placed(A)], "a"),
        (B, claim(resolved("a", 1, 2), 1, containers=("sidecar",)), [], None),
        (B, claim(resolved("a", 1, 2), 1, app="other"), [], None),
    ],
)
def test_arbitrate(mine: Claim, other: Claim, items: list[Placed], expected: str | None) -> None:
    """Who is in the pod stays; where nobody is, the older waits for nobody."""
    found = arbitrate(mine, [mine, other], [TARGET], lambda _: items)
    assert [one.blocked for one in found] == [expected]
