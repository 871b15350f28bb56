"""What the API server's schema refuses by itself."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from apiserver import Api, Refused
from stage import Cluster

GOOD = {"bundle": {"configMap": {"name": "fix"}}, "selector": {"matchLabels": {"app": "redis"}}}
QUERY = {"url": "http://prometheus:9090", "query": "up"}
BAD = {
    "two sources": ({"bundle": {"inline": "QUJD", "configMap": {"name": "x"}}}, "exactly one of"),
    "no source": ({"bundle": {}}, "exactly one of"),
    "tag for a digest": ({"bundle": {"oci": "registry.example/redis:latest"}}, "should match"),
    "not base64": ({"bundle": {"inline": "{}{}"}}, "should match"),
    "empty selector": ({"selector": {}}, "empty selector"),
    "In without values": (
        {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
        "values must be given",
    ),
    "unknown operator": (
        {"selector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
        "Unsupported value",
    ),
    "nothing in parallel": ({"strategy": {"maxParallel": 0}}, "positive number"),
    "too many percent": ({"strategy": {"maxParallel": "101%"}}, "positive number"),
    "no deadline": ({"strategy": {"threadDeadlineSeconds": 0}}, "greater than or equal to 1"),
    "step of two kinds": ({"strategy": {"steps": [{"pods": 1, "pause": {}}]}}, "either pods or pause"),
    "empty step": ({"strategy": {"steps": [{}]}}, "either pods or pause"),
    "step without pods": ({"strategy": {"steps": [{"pods": 0}]}}, "positive number"),
    "step of many percent": ({"strategy": {"steps": [{"pods": "200%"}]}}, "positive number"),
    "step of a word": ({"strategy": {"steps": [{"pods": "half"}]}}, "positive number"),
    "pause of no time": ({"strategy": {"steps": [{"pause": {"seconds": 0}}]}}, "greater than or equal to 1"),
    "steps that shrink": ({"strategy": {"steps": [{"pods": 3}, {"pause": {}}, {"pods": 2}]}}, "must not be fewer"),
    "too many steps": ({"strategy": {"steps": [{"pods": 1}] * 21}}, "at most 20 items"),
    "no time for progress": ({"strategy": {"progressDeadlineSeconds": 0}}, "greater than or equal to 1"),
    "unknown way to fail": ({"strategy": {"onFailure": "Ignore"}}, "Unsupported value"),
    "negative restarts": ({"strategy": {"health": {"maxRestarts": -1}}}, "greater than or equal to 0"),
    "no limit": ({"strategy": {"health": {"prometheus": QUERY}}}, "a limit must be given"),
    "limits that exclude each other": (
        {"strategy": {"health": {"prometheus": QUERY | {"atLeast": 2, "atMost": 1}}}},
        "atLeast is above atMost",
    ),
    "a file for Prometheus": (
        {"strategy": {"health": {"prometheus": {"url": "file:///etc/passwd", "query": "up", "atMost": 1}}}},
        "should match",
    ),
    "a user in the address": (
        {"strategy": {"health": {"prometheus": {"url": "http://a:b@c/", "query": "up", "atMost": 1}}}},
        "should match",
    ),
    "unknown policy": ({"deletionPolicy": "Forget"}, "Unsupported value"),
}


@pytest.mark.parametrize("case", BAD)
def test_schema_refuses(cluster: Cluster, case: str) -> None:
    """A spec that can be known to be wrong never gets stored."""
    spec, words = BAD[case]
    with pytest.raises(Refused, match=words) as caught:
        cluster.apply(**spec)
    assert caught.value.status == 422


def test_schema_defaults(cluster: Cluster) -> None:
    """Defaults are filled in by the API server, and kstatus is made to wait by observedGeneration -1."""
    body = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch", "metadata": {"name": "lp"}}
    stored = cluster.api.create(cluster.path("livepatches"), body | {"spec": GOOD})
    assert stored["spec"]["strategy"] == {
        "maxParallel": "25%", "threadDeadlineSeconds": 30, "progressDeadlineSeconds": 600, "onFailure": "Pause"
    }  # fmt: skip
    assert stored["spec"]["bundle"]["configMap"]["key"] == "bundle.graft"
    assert (stored["spec"]["deletionPolicy"], stored["spec"]["repatch"]) == ("Revert", True)
    assert cluster.live_patch()["status"] == {"observedGeneration": -1}


def kubectl(api: Api, folder: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"KUBECONFIG": str(api.kubeconfig(folder / "config"))}
    command = ["kubectl", *arguments]
    return subprocess.run(
        command, check=False, env=environment, input=given, capture_output=True, text=True, timeout=60
    )


def test_kubectl_apply_refuses_an_unknown_field(cluster: Cluster, tmp_path: Path) -> None:
    """A misspelt field is an error for who types it: kubectl asks for strict validation by default."""
    spec = GOOD | {"stratgy": {"maxParallel": 1}}
    body = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch", "metadata": {"name": "typo"}, "spec": spec}
    done = kubectl(cluster.api, tmp_path, "-n", cluster.name, "apply", "-f", "-", given=yaml.safe_dump(body))
    assert done.returncode != 0
    assert 'unknown field "spec.stratgy"' in done.stderr
    assert cluster.gone("typo")


def test_kubectl_get_prints_the_columns(cluster: Cluster, tmp_path: Path) -> None:
    """`kubectl get lp` shows what an operator of a fleet wants to see first."""
    cluster.apply()
    status = {
        "summary": {"cve": "CVE-2025-32023", "patched": "12/12", "threads": "96/96"},
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Patched", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ],
    }
    cluster.api.patch(cluster.path("livepatches", "lp") + "/status", {"status": status})
    lines = kubectl(cluster.api, tmp_path, "-n", cluster.name, "get", "lp").stdout.splitlines()
    assert lines[0].split() == ["NAME", "CVE", "PATCHED", "THREADS", "READY", "AGE"]
    assert lines[1].split()[:5] == ["lp", "CVE-2025-32023", "12/12", "96/96", "True"]
