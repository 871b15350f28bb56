"""Prometheus metrics of the operator; what LivePatches and nodes say is read from the world at each scrape."""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from podgraft_api.nodepatch import ItemReport, Phase
from podgraft_operator.turns import trouble
from podgraft_operator.world import World

RECONCILES = Counter("podgraft_operator_reconciles", "Looks at one LivePatch", ["result"])
RECONCILE_SECONDS = Histogram(
    "podgraft_operator_reconcile_seconds",
    "How long one look at one LivePatch takes, writes included",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE = Gauge("podgraft_operator_queue_length", "LivePatches that wait for a look")
EVENTS = Counter("podgraft_operator_events", "Kubernetes Events, by what became of them", ["outcome"])

# Labels are not `namespace` and `pod`: those are Prometheus's own for the pod that is scraped.
LIVE_PATCH = ["livepatch_namespace", "livepatch"]
POD_STATES = ("patched", "pending", "failed", "notApplicable")
# A bundle names its CVEs itself; a label must not grow without bound.
MAX_CVES = 16
MAX_REASON = 64
Body = dict[str, Any]


class WorldCollector(Collector):
    """Turns the operator's memory into gauges: a series for each LivePatch, CVE and silent node, none for a pod."""

    def __init__(self, world: World) -> None:
        self._world = world

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return nothing: the registry need not look at the world when it is made."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield all families, also empty ones."""
        yield from self._live_patches()
        yield from self._processes()
        yield from self._nodes()

    def _live_patches(self) -> Iterator[GaugeMetricFamily]:
        pods = _family("podgraft_livepatch_pods", "Pods by state", [*LIVE_PATCH, "state"])
        threads = _family("podgraft_livepatch_threads", "Threads: total and migrated", [*LIVE_PATCH, "state"])
        held = _family("podgraft_livepatch_max_held_seconds", "Longest hold of one thread", LIVE_PATCH)
        paused = _family("podgraft_livepatch_paused", "1 where spec.paused is set", LIVE_PATCH)
        condition = _family(
            "podgraft_livepatch_condition",
            "1 for the condition that is true now, with its reason",
            [*LIVE_PATCH, "condition", "reason"],
        )
        by_cve = _family("podgraft_cve_pods", "Pods by CVE and state, over all LivePatches", ["cve", "state"])
        cve_pods: Tally[tuple[str, str]] = Tally()
        for key, body in self._world.live_patches.items():
            status = body.get("status") or {}
            counted = status.get("pods") or {}
            for state in POD_STATES:
                pods.add_metric([*key, state], counted.get(state, 0))
                for cve in cves(body):
                    cve_pods[cve, state] += counted.get(state, 0)
            for state in ("total", "migrated"):
                threads.add_metric([*key, state], (status.get("threads") or {}).get(state, 0))
            held.add_metric(key, status.get("maxHeldMicroseconds", 0.0) / 1e6)
            paused.add_metric(key, float(bool(body["spec"].get("paused"))))
            for one in status.get("conditions", ()):
                if one["status"] == "True":
                    condition.add_metric([*key, one["type"], one["reason"]], 1)
        for labels, count in cve_pods.items():
            by_cve.add_metric(labels, count)
        yield from (pods, threads, held, paused, condition, by_cve)

    def _processes(self) -> Iterator[GaugeMetricFamily]:
        processes = _family("podgraft_livepatch_processes", "Processes by phase", [*LIVE_PATCH, "phase"])
        troubled = _family(
            "podgraft_livepatch_pods_troubled", "Pods refused or failed, by reason", [*LIVE_PATCH, "reason"]
        )
        stragglers = _family("podgraft_livepatch_stragglers", "Threads that are waited for", LIVE_PATCH)
        waited = _family(
            "podgraft_livepatch_longest_wait_seconds", "How long the most patient of them is waited for", LIVE_PATCH
        )
        by_cve = _family("podgraft_cve_processes", "Processes by CVE and phase", ["cve", "phase"])
        counted: Tally[tuple[str, ...]] = Tally()
        reasons: Tally[tuple[str, ...]] = Tally()
        behind: Tally[tuple[str, ...]] = Tally()
        longest: dict[tuple[str, ...], float] = {}
        cve_counted: Tally[tuple[str, str]] = Tally()
        for key, report in self._reports():
            for phase, count in phases(report).items():
                counted[*key, phase] += count
                for cve in cves(self._world.live_patches.get(key, {})):
                    cve_counted[cve, phase] += count
            if report.phase in {Phase.REFUSED, Phase.FAILED}:
                reasons[*key, trouble(report)[0][:MAX_REASON]] += 1
            left = [thread for one in report.processes for thread in one.stragglers or ()]
            behind[key] += len(left)
            longest[key] = max([longest.get(key, 0.0), *(one.waited_seconds for one in left)])
        for family, values in (
            (processes, counted), (troubled, reasons), (stragglers, behind), (waited, longest), (by_cve, cve_counted)
        ):  # fmt: skip
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family

    def _reports(self) -> Iterator[tuple[tuple[str, str], ItemReport]]:
        for node in self._world.nodes.values():
            status = node.parsed.status
            answers = {(one.id, one.version): one for one in status.items} if status is not None else {}
            for item in node.items:
                report = answers.get((item.id, item.version))
                if report is not None:
                    yield (item.live_patch.namespace, item.live_patch.name), report

    def _nodes(self) -> Iterator[GaugeMetricFamily]:
        silent = self._world.silent_nodes()
        nodes = _family("podgraft_nodes", "Nodes with work, by whether their agent answers", ["state"])
        nodes.add_metric(["silent"], len(silent))
        nodes.add_metric(["answering"], len(self._world.nodes) - len(silent))
        yield nodes
        each = _family("podgraft_node_silent", "1 for each node whose agent does not answer", ["node"])
        for name in sorted(silent):
            each.add_metric([name], 1)
        yield each
        objects = _family("podgraft_operator_objects", "Objects in the operator's memory", ["kind"])
        objects.add_metric(["livepatches"], len(self._world.live_patches))
        objects.add_metric(["nodepatches"], len(self._world.nodes))
        objects.add_metric(["pods"], sum(map(len, self._world.pods.values())))
        yield objects


def cves(body: Body) -> list[str]:
    """Return the CVEs of a LivePatch's bundle, as far as the operator has read it."""
    found = ((body.get("status") or {}).get("bundle") or {}).get("cves") or []
    return sorted(set(found))[:MAX_CVES]


def phases(report: ItemReport) -> Tally[str]:
    """Count the processes of an item by phase; those beyond the sample are like its last: troubled ones come first."""
    counted = Tally(one.phase.value for one in report.processes)
    if report.processes:
        counted[report.processes[-1].phase.value] += max(0, report.process_count - len(report.processes))
    return counted


def _family(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)
