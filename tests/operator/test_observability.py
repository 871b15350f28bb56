"""What an operator of the cluster sees: metrics of both programs, log lines, Events."""

import json
import re
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from installed import ROOT
from prometheus_client.parser import text_string_to_metric_families
from stage import Cluster, make_graft, wait
from test_agent import StartAgent, Target, add_pod, apply, built, start_agent, target

# Fixtures of the module that they come from.
__all__ = ["built", "start_agent", "target"]

pytestmark = pytest.mark.usefixtures("operator")
MONITORING = ROOT / "charts/podgraft/monitoring"
NAME = re.compile(r"\bpodgraft_[a-z_]+")
Json = dict[str, Any]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(process: Any) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{process.metrics_port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def families(text: str) -> set[str]:
    """Return the names under which Prometheus stores what a program offers, with and without samples."""
    names = set()
    for family in text_string_to_metric_families(text):
        parts = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + part for part in parts}
    return names


def samples(text: str) -> Samples:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    """Return the sum of the samples that have these labels."""
    return sum(number for (one, there), number in samples(text).items() if one == name and labels.items() <= set(there))


def expressions() -> Iterable[str]:
    """Yield every expression of the dashboard and of the alerts."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    for panel in board["panels"]:
        yield from (one["expr"] for one in panel["targets"])
    yield from (one["definition"] for one in board["templating"]["list"] if one["type"] == "query")
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.mark.engine
def test_metrics_of_both_programs(
    cluster: Cluster, operator: Any, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """A process is patched: both programs count it, and offer every metric that dashboard and alerts name."""
    add_pod(cluster, target)
    with start_agent() as agent:
        apply(cluster, built)
        cluster.wait_condition("Ready", "Patched")
        here, there = scrape(operator), scrape(agent)
        mine = {"livepatch_namespace": cluster.name, "livepatch": "lp"}
        threads = cluster.live_patch()["status"]["threads"]["total"]
        assert value(here, "podgraft_livepatch_pods", **mine, state="patched") == 1
        assert value(here, "podgraft_livepatch_threads", **mine, state="migrated") == threads
        assert value(here, "podgraft_livepatch_processes", **mine, phase="Applied") == 1
        assert value(here, "podgraft_livepatch_condition", **mine, condition="Ready", reason="Patched") == 1
        assert value(here, "podgraft_livepatch_max_held_seconds", **mine) < 1
        assert value(here, "podgraft_api_requests_total", method="PATCH", code="200") > 0
        assert value(here, "podgraft_operator_reconcile_seconds_count") > 0
        assert value(there, "podgraft_agent_processes", phase="Applied") == 1
        assert value(there, "podgraft_agent_threads", state="total") == threads
        assert value(there, "podgraft_engine_runs_total", op="apply", exit="done") == 1
        assert value(there, "podgraft_engine_run_seconds_count", op="apply") == 1
        assert value(there, "podgraft_threads_migrated_total") >= threads - 1
        assert 0 < value(there, "podgraft_thread_held_seconds_sum") < 5
        assert value(there, "podgraft_agent_engines") == 0
        offered = families(here) | families(there)
        named = {name for text in expressions() for name in NAME.findall(text)}
        assert len(named) > 20
        assert not named - offered, "named by the dashboard or an alert, offered by nobody"
        documented = set(
            re.findall(r"^\| `(podgraft_[a-z_]+)`", (ROOT / "docs/observability.md").read_text(), re.MULTILINE)
        )
        there_are = {re.sub("_(bucket|sum|count)$", "", one) for one in offered if one.startswith("podgraft_")}
        assert documented == there_are, "docs/observability.md lists what there is"
        labels = {label for text in (here, there) for _, found in samples(text) for label, _ in found}
        assert not labels & {"pod", "pid", "container", "tid", "namespace"}, "a series for each pod"
        logged_about(cluster, agent.log, operator.log)  # type: ignore[attr-defined]


def logged_about(cluster: Cluster, agent: Path, operator: Path) -> None:
    """Each line is JSON; those about work say for which LivePatch, pod and node."""
    here = [json.loads(line) for line in operator.read_text().splitlines()]
    mine = [one for one in here if one.get("namespace") == cluster.name]
    assert all(one["live_patch"] == "lp" for one in mine)
    asked = next(one for one in mine if one["event"] == "ask")
    assert (asked["pod"], asked["node"], asked["op"]) == ("redis-0", cluster.node(0), "apply")
    assert any(one["event"] == "pod stands anew" and one["standing"] == "patched" for one in mine)
    there = [json.loads(line) for line in agent.read_text().splitlines()]
    assert all(one["node"] == cluster.node(0) for one in there)
    runs = [one for one in there if one["event"] == "engine run"]
    assert runs
    for one in runs:
        about = (one["namespace"], one["live_patch"], one["pod"], one["container"])
        assert about == (cluster.name, "lp", "redis-0", "redis")
        assert one["pid"] > 0


def test_refusals_and_silence_are_counted(cluster: Cluster, operator: Any) -> None:
    """A refused pod is counted by its reason, a straggler with its wait, a silent node by its name."""
    cluster.add_config_map(make_graft())
    for number in range(3):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply()
    for number in range(3):
        cluster.wait_items(number)
    cluster.answer(0, "Refused", reason="NoPatchSite", message="f is too short")
    thread = {"tid": 7, "name": "main", "why": "on its stack", "waitedSeconds": 41.5}
    cluster.answer(1, "Applying", threadsMigrated=7, stragglers=[thread])
    mine = {"livepatch_namespace": cluster.name, "livepatch": "lp"}

    def counted() -> bool:
        text = scrape(operator)
        return (
            value(text, "podgraft_livepatch_pods_troubled", **mine, reason="NoPatchSite") == 1
            and value(text, "podgraft_livepatch_stragglers", **mine) == 1
            and value(text, "podgraft_livepatch_longest_wait_seconds", **mine) == 41.5
            and value(text, "podgraft_cve_pods", cve="CVE-2025-32023", state="failed") >= 1
            and value(text, "podgraft_node_silent", node=cluster.node(2)) == 1
            and value(text, "podgraft_node_silent", node=cluster.node(0)) == 0
        )

    wait(counted, "all of it is counted")


def events(cluster: Cluster) -> list[Json]:
    found: list[Json] = cluster.api.get(f"/apis/events.k8s.io/v1/namespaces/{cluster.name}/events")["items"]
    return sorted(found, key=lambda one: one["eventTime"])


def test_events_tell_a_rollout(cluster: Cluster) -> None:
    """Begun, refused pod, done and reverted are told once each; pods that go together share an Event."""
    cluster.add_config_map(make_graft())
    for number in range(3):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply()
    for number in range(3):
        cluster.wait_items(number)
    cluster.answer(0)
    cluster.answer(1)
    cluster.answer(2, "Refused", reason="PreimageMismatch", message="f differs")
    cluster.wait_condition("Stalled", "PreimageMismatch")
    cluster.answer(2)
    cluster.wait_condition("Ready", "Patched")
    cluster.api.delete(cluster.path("livepatches", "lp"))
    for number in range(3):
        cluster.wait_items(number, "Reverted")
        cluster.answer(number)
    wait(cluster.gone, "reverted and gone")
    told = events(cluster)
    assert len(told) <= 12, [one["note"] for one in told]
    by_reason: dict[str, list[Json]] = {}
    for one in told:
        by_reason.setdefault(one["reason"], []).append(one)
        assert one["regarding"]["kind"] == "LivePatch"
        assert one["reportingController"] == "podgraft.dev/operator"
        assert one["action"]
    assert len(by_reason["RolloutBegan"]) == 1
    assert "redis-2 (PreimageMismatch: f differs" in by_reason["PodsFailed"][0]["note"]
    assert by_reason["PodsFailed"][0]["type"] == by_reason["PreimageMismatch"][0]["type"] == "Warning"
    patched = " ".join(one["note"] for one in by_reason["PodsPatched"])
    assert all(f"redis-{number}" in patched for number in range(3))
    reverted = " ".join(one["note"] for one in by_reason["PodsReverted"])
    assert all(f"redis-{number}" in reverted for number in range(3))
    assert [len(by_reason[reason]) for reason in ("Patched", "Reverting", "Reverted")] == [1, 1, 1]


def test_an_event_that_comes_again_is_counted(cluster: Cluster) -> None:
    """A LivePatch that stalls and recovers over and over has one Event for each state, with a count."""
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    cluster.wait_items(0)
    for _ in range(3):
        cluster.answer(0)
        cluster.wait_condition("Ready", "Patched")
        cluster.answer(0, "Refused", reason="AlreadyTraced", message="by gdb")
        cluster.wait_condition("Stalled", "AlreadyTraced")
    told = [one for one in events(cluster) if one["reason"] == "AlreadyTraced"]
    assert len(told) == 1
    assert told[0]["series"]["count"] >= 2
