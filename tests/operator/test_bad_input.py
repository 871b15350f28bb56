"""What the schema cannot refuse is a condition with a reason, and an Event."""

import base64
from pathlib import Path
from typing import Any

import pytest
from stage import STRANGER, Cluster, make_graft, wait
from test_schema import kubectl

pytestmark = pytest.mark.usefixtures("operator")


def inline(data: bytes) -> dict[str, Any]:
    return {"bundle": {"inline": base64.b64encode(data).decode()}}


def flipped(data: bytes) -> bytes:
    at = data.index(b"redis-server")
    return data[:at] + b"R" + data[at + 1 :]


GRAFT = make_graft()
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "bad label value": ({"selector": {"matchLabels": {"app": "a b"}}}, "InvalidSelector", "'a b' is no label value"),
    "bad label key": ({"selector": {"matchLabels": {"/x": "a"}}}, "InvalidSelector", "'/x' is no label key"),
    "unsigned": (inline(make_graft(keys=())), "UnsignedBundle", "podgraft sign"),
    "signed by a stranger": (inline(make_graft(keys=(STRANGER,))), "UntrustedSignature", "trust.keys"),
    "no such reference": ({"bundle": {"oci": f"x..y/x@sha256:{'0' * 64}"}}, "RegistryNotAllowed", "no reference"),
    "no bundle": (inline(b"no bundle at all" * 99), "BundleCorrupt", "no readable tar"),
    "truncated": (inline(GRAFT[:2000]), "BundleTruncated", "copy the bundle again"),
    "flipped byte": (inline(flipped(GRAFT)), "BundleCorrupt", "digest"),
    "bad base64": ({"bundle": {"inline": "AAAAA"}}, "BundleNotBase64", "inline is no base64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(cluster: Cluster, case: str) -> None:
    """The condition names reason and detail, nothing is given to a node, and deleting works at once."""
    spec, reason, words = BAD[case]
    cluster.add_pod("redis-0", 0)
    cluster.add_config_map(make_graft())
    cluster.apply(**spec)
    stalled = cluster.wait_condition("Stalled", reason)
    assert words in stalled["message"]
    assert cluster.conditions()["Ready"] | {"type": "Stalled", "status": "True"} == stalled
    assert cluster.items(0) == []
    # Posted after the status is written.
    events = wait(lambda: cluster.api.get(cluster.path("events"))["items"], "an Event")
    assert [(one["type"], one["reason"]) for one in events] == [("Warning", reason)]
    cluster.api.delete(cluster.path("livepatches", "lp"))
    wait(cluster.gone, "deleted")


def test_missing_config_map_heals(cluster: Cluster, tmp_path: Path) -> None:
    """A missing ConfigMap is told in `kubectl describe`; when it appears, the rollout begins by itself."""
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_condition("Stalled", "ConfigMapNotFound")
    described = kubectl(cluster.api, tmp_path, "-n", cluster.name, "describe", "livepatch", "lp").stdout
    assert f"ConfigMap {cluster.name}/fix does not exist" in described
    assert "Warning  ConfigMapNotFound" in described
    cluster.api.create(cluster.path("configmaps"), {"metadata": {"name": "fix"}, "data": {"other": "x"}})
    assert "there is other" in cluster.wait_condition("Stalled", "ConfigMapKeyNotFound")["message"]
    text = base64.encodebytes(GRAFT).decode()
    cluster.api.patch(cluster.path("configmaps", "fix"), {"data": {"bundle.graft": text}})
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def test_bundle_lost_later_harms_nothing(cluster: Cluster) -> None:
    """When the ConfigMap disappears after the rollout, what is patched stays, and deleting still reverts."""
    cluster.add_config_map(GRAFT)
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    before = cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    cluster.api.delete(cluster.path("configmaps", "fix"))
    cluster.wait_condition("Stalled", "ConfigMapNotFound")
    assert cluster.items(0) == before
    assert cluster.live_patch()["status"]["pods"]["patched"] == 1
    cluster.api.delete(cluster.path("livepatches", "lp"))
    cluster.wait_items(0, "Reverted")
