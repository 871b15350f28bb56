"""What the operator keeps of thousands of NodePatches."""

from podgraft_api.nodepatch import NodePatch


def node_patch(pod: str) -> NodePatch:
    item = {
        "id": f"1/{pod}",
        "version": 1,
        "desired": "Applied",
        "livePatch": {"namespace": "shop", "name": "fix", "uid": "1"},
        "bundle": {"digest": f"sha256:{'a' * 64}", "chunks": 2, "name": "fix", "buildId": "b" * 40},
        "pod": {"namespace": "shop", "name": f"pod-{pod}", "uid": pod},
        "containers": [{"name": "server", "id": "c" * 64}],
        "baseline": {"ready": True, "restarts": 0},
    }
    return NodePatch.model_validate({"spec": {"items": [item]}})


def test_parts_that_all_items_have_are_kept_once() -> None:
    """All pods of a LivePatch share the reference to it, the bundle and the baseline; the rest is their own."""
    (one,), (other,) = node_patch("1").spec.items, node_patch("2").spec.items
    assert one.live_patch is other.live_patch
    assert one.bundle is other.bundle
    assert one.baseline is other.baseline
    assert one.pod != other.pod
