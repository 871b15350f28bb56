"""The plan of docs/upgrading.md for a next version of the CRDs, played on a real API server."""

import copy
from collections.abc import Iterator

import pytest
import yaml
from apiserver import Api, Json, Refused, api_server
from installed import ROOT
from stage import wait

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAME = "livepatches.podgraft.dev"
OLD, NEW = (f"/apis/podgraft.dev/{version}/namespaces/default/livepatches" for version in ("v1alpha1", "v1beta1"))
SPEC = {"bundle": {"configMap": {"name": "fix"}}, "selector": {"matchLabels": {"app": "redis"}}, "paused": True}


@pytest.fixture(scope="module")
def crd() -> Json:
    body: Json = yaml.safe_load((ROOT / "crds" / "podgraft.dev_livepatches.yaml").read_text())
    return body


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, crd: Json) -> Iterator[Api]:
    """An API server of its own, for its CRD does not stay as it is."""
    with api_server(tmp_path_factory.mktemp("versions")) as server:
        server.create(CRDS, crd)
        wait(lambda: server.exists(OLD), "the first version is served")
        yield server


def live_patch(version: str, name: str) -> Json:
    return {
        "apiVersion": f"podgraft.dev/{version}",
        "kind": "LivePatch",
        "metadata": {"name": name},
        "spec": copy.deepcopy(SPEC),
    }


def stored(api: Api) -> list[str]:
    versions: list[str] = api.get(f"{CRDS}/{NAME}")["status"]["storedVersions"]
    return versions


def test_the_next_version_is_added_stored_and_the_first_one_dropped(fresh: Api, crd: Json) -> None:
    """An object outlives both steps; the first version cannot be dropped before everything is written once."""
    fresh.create(OLD, live_patch("v1alpha1", "from-before"))
    first = copy.deepcopy(crd["spec"]["versions"][0])
    second = copy.deepcopy(first) | {"name": "v1beta1", "storage": False}
    second["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["added"] = {"type": "string"}

    fresh.patch(f"{CRDS}/{NAME}", {"spec": {"versions": [first, second], "conversion": {"strategy": "None"}}})
    wait(lambda: fresh.exists(NEW), "the second version is served")
    assert fresh.get(f"{NEW}/from-before")["spec"]["paused"] is True
    assert stored(fresh) == ["v1alpha1"]

    fresh.patch(f"{CRDS}/{NAME}", {"spec": {"versions": [first | {"storage": False}, second | {"storage": True}]}})
    wait(lambda: stored(fresh) == ["v1alpha1", "v1beta1"], "the second version is stored")
    body = live_patch("v1beta1", "from-after")
    body["spec"]["added"] = "new"
    wait(lambda: _creates(fresh, body), "it takes objects of the second version")
    assert "added" not in fresh.get(f"{OLD}/from-after")["spec"], "the first version does not know the new field"
    assert fresh.get(f"{NEW}/from-after")["spec"]["added"] == "new"

    gone = {"spec": {"versions": [second | {"storage": True}]}}
    with pytest.raises(Refused, match="v1alpha1"):
        fresh.patch(f"{CRDS}/{NAME}", gone)
    for one in fresh.get(NEW)["items"]:
        fresh.call("PUT", f"{NEW}/{one['metadata']['name']}", one)
    fresh.patch(f"{CRDS}/{NAME}/status", {"status": {"storedVersions": ["v1beta1"]}})
    fresh.patch(f"{CRDS}/{NAME}", gone)
    wait(lambda: not fresh.exists(OLD), "the first version is gone")
    assert fresh.get(f"{NEW}/from-before")["spec"]["selector"] == SPEC["selector"]


def _creates(api: Api, body: Json) -> bool:
    try:
        api.create(NEW, body)
    except Refused as refused:
        if refused.status == 404:
            return False
        raise
    return True
