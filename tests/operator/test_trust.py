"""Signatures on their way through the operator; what the agent says of them is in test_agent."""

import base64

import pytest
from apiserver import Json
from installed import SYSTEM
from stage import KEY, NEXT_KEY, STRANGER, Cluster, make_graft, wait

from podgraft_api.nodepatch import signatures_name
from podgraft_bundle.trust import key_id

pytestmark = pytest.mark.usefixtures("operator")
OLD, NEW = key_id(KEY.public_key()), key_id(NEXT_KEY.public_key())


def signed_by(cluster: Cluster) -> list[str]:
    found: list[str] = cluster.live_patch()["status"].get("bundle", {}).get("signedBy", [])
    return sorted(found)


def replace_bundle(cluster: Cluster, data: bytes) -> None:
    content = {"bundle.graft": base64.b64encode(data).decode()}
    cluster.api.patch(cluster.path("configmaps", "fix"), {"binaryData": content})


def roll_out(cluster: Cluster) -> list[Json]:
    """Have one pod patched by a bundle that the old key has signed; return the work of its node."""
    cluster.add_pod("redis-0", 0)
    cluster.add_config_map(make_graft())
    cluster.apply()
    items = cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    return items


def test_keys_rotate_without_touching_a_process(cluster: Cluster) -> None:
    """A bundle that is signed once more is the same patch: agents get the new signature, and no new work."""
    before = roll_out(cluster)
    assert signed_by(cluster) == [OLD]
    replace_bundle(cluster, make_graft(keys=(KEY, NEXT_KEY, STRANGER)))
    wait(lambda: signed_by(cluster) == sorted([OLD, NEW]), "the second key is told")
    name = signatures_name(before[0]["bundle"]["digest"])
    stored = cluster.api.get(f"/api/v1/namespaces/{SYSTEM}/configmaps/{name}")
    assert sorted(stored["data"]) == sorted([OLD, NEW]), "both trusted ones, and not the stranger's"
    assert cluster.items(0) == before
    assert cluster.conditions()["Ready"]["reason"] == "Patched"


def test_a_bundle_that_lost_its_signature_stops_nothing_that_is_done(cluster: Cluster) -> None:
    """An unsigned bundle in place of the signed one is told; what is patched stays, and deleting reverts it."""
    before = roll_out(cluster)
    replace_bundle(cluster, make_graft(keys=()))
    cluster.wait_condition("Stalled", "UnsignedBundle")
    assert cluster.items(0) == before
    cluster.add_pod("redis-1", 1)
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
    assert cluster.items(1) == []
    cluster.answer(0)
    wait(cluster.gone, "reverted and gone")
