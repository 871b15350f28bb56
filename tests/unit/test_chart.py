"""The chart: what it renders is what the design says."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.dashboard import dashboard, text

CHART = Path(__file__).parents[2] / "charts/podgraft"
Json = dict[str, Any]


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [os.environ.get("HELM", "helm"), *arguments], check=False, capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("helm is not there; set HELM")


def render(*values: str) -> list[Json]:
    sets = [part for value in values for part in ("--set", value)]
    done = helm("template", "podgraft", str(CHART), "--namespace", "system", "--kube-version", "1.34.0", *sets)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def one(objects: list[Json], kind: str, name: str) -> Json:
    return next(body for body in objects if (body["kind"], body["metadata"]["name"]) == (kind, name))


def container(objects: list[Json], kind: str, name: str) -> Json:
    found: Json = one(objects, kind, name)["spec"]["template"]["spec"]["containers"][0]
    return found


def test_lint() -> None:
    """Helm lint is content, warnings included."""
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("value", ["agent.privilegd=false", "agent.parallel=0", "operator.image.pullPolicy=Often"])
def test_schema_refuses_unknown_values(value: str) -> None:
    """A misspelt or impossible value is an error, not silence."""
    done = helm("template", "podgraft", str(CHART), "--kube-version", "1.34.0", "--set", value)
    assert done.returncode != 0
    assert value.split("=", maxsplit=1)[0].rsplit(".", maxsplit=1)[-1].rstrip("d") in done.stderr


def test_operator_may_do_nothing_as_a_process() -> None:
    """The operator runs as nobody, with nothing, on a file system it cannot write."""
    objects = render()
    pod = one(objects, "Deployment", "podgraft-operator")["spec"]["template"]["spec"]
    security = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one(objects, "Deployment", "podgraft-operator")["spec"]["replicas"] == 1


def test_only_named_prometheus_servers_are_asked() -> None:
    """No server by default; those of the values reach the operator."""

    def urls(*values: str) -> str:
        return next(
            entry["value"]
            for entry in container(render(*values), "Deployment", "podgraft-operator")["env"]
            if entry["name"] == "PODGRAFT_PROMETHEUS_URLS"
        )

    assert urls() == ""
    assert urls("operator.prometheusUrls={http://a:9090,https://b/prom}") == "http://a:9090,https://b/prom"


def test_agent_privileged_or_with_named_capabilities() -> None:
    """A few capabilities by default, SYS_ADMIN and privileged only where asked for."""
    full = container(render("agent.privileged=true"), "DaemonSet", "podgraft-agent")["securityContext"]
    assert full["privileged"] is True
    few = container(render(), "DaemonSet", "podgraft-agent")["securityContext"]
    assert few["privileged"] is False
    assert few["capabilities"] == {
        "drop": ["ALL"],
        "add": ["SYS_PTRACE", "DAC_OVERRIDE", "CHECKPOINT_RESTORE", "SYS_NICE"],
    }
    assert few["seccompProfile"] == {"type": "RuntimeDefault"}
    more = container(render("agent.readSeccompFilters=true"), "DaemonSet", "podgraft-agent")["securityContext"]
    assert more["capabilities"]["add"][-1] == "SYS_ADMIN"
    assert more["seccompProfile"] == {"type": "Unconfined"}


def test_agent_runs_on_every_node() -> None:
    """The agent sees the node's processes, tolerates every taint, and has but one folder of the host: the locks."""
    pod = one(render(), "DaemonSet", "podgraft-agent")["spec"]["template"]["spec"]
    assert pod["hostPID"] is True
    assert "hostNetwork" not in pod
    assert {"operator": "Exists"} in pod["tolerations"]
    assert [v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v] == ["/run/podgraft"]


def granted(objects: list[Json], name: str) -> dict[str, set[str]]:
    """Return resource -> verbs of an account, cluster-wide and in its namespace."""
    verbs: dict[str, set[str]] = {}
    for body in objects:
        if body["kind"] in {"Role", "ClusterRole"} and body["metadata"]["name"] == name:
            for rule in body["rules"]:
                for resource in rule["resources"]:
                    verbs.setdefault(resource, set()).update(rule["verbs"])
    return verbs


def test_accounts_get_the_least() -> None:
    """Nobody gets a wildcard, a Secret, or the right to change pods; agents write nothing but a status."""
    objects = render()
    for body in objects:
        for rule in body.get("rules", []):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
    agent, operator = granted(objects, "podgraft-agent"), granted(objects, "podgraft-operator")
    assert agent == {
        "nodepatches": {"get", "list", "watch"}, "nodepatches/status": {"patch"}, "configmaps": {"get"}
    }  # fmt: skip
    assert operator.keys() == {
        "livepatches", "livepatches/status", "nodepatches", "pods", "configmaps", "events"
    }  # fmt: skip
    assert operator["pods"] == {"list", "watch"}


SWITCHES = [f"monitoring.{part}.enabled=true" for part in ("podMonitor", "rules", "dashboard")]


def test_monitoring_is_asked_for() -> None:
    """Without values nothing of the Prometheus operator is rendered: its CRDs may not be there."""
    objects = render()
    assert not {body["kind"] for body in objects} & {"PodMonitor", "PrometheusRule"}
    assert "podgraft-dashboard" not in {body["metadata"]["name"] for body in objects}


def test_monitoring_finds_both_programs() -> None:
    """The PodMonitor selects operator and agents and names their port; rules and dashboard are whole."""
    objects = render(*SWITCHES, "monitoring.rules.labels.release=prometheus")
    spec = one(objects, "PodMonitor", "podgraft")["spec"]
    for kind, name in (("Deployment", "podgraft-operator"), ("DaemonSet", "podgraft-agent")):
        labels = one(objects, kind, name)["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        ports = {port["name"] for port in container(objects, kind, name)["ports"]}
        assert {each["port"] for each in spec["podMetricsEndpoints"]} <= ports
    rule = one(objects, "PrometheusRule", "podgraft")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    assert rule["spec"] == yaml.safe_load((CHART / "monitoring/alerts.yaml").read_text())
    board = one(objects, "ConfigMap", "podgraft-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["data"]["podgraft.json"] == (CHART / "monitoring/dashboard.json").read_text()


def test_dashboard_is_what_the_script_writes() -> None:
    """`make dashboard` has been run, and no panel lies over another or beside the screen."""
    assert (CHART / "monitoring/dashboard.json").read_text() == text()
    places = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        covered = {(at["x"] + column, at["y"]) for column in range(at["w"])}
        assert not covered & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= covered
