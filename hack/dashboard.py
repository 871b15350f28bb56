"""`python -m hack.dashboard`: writes the chart's Grafana dashboard; a test compares it with the metrics that exist."""

import json
from typing import Any

from hack.tools import REPOSITORY

FILE = REPOSITORY / "charts/podgraft/monitoring/dashboard.json"
WIDTH, HEIGHT = 24, 8
Json = dict[str, Any]
CHOSEN = 'livepatch_namespace=~"$namespace",livepatch=~"$livepatch"'
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


def quantiles(metric: str, by: str = "") -> dict[str, str]:
    """Return legend -> expression for a histogram; by: a further label."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rate = f"sum by ({labels}) (rate({metric}_bucket[$__rate_interval]))"
    return {f"{name}{legend}": f"histogram_quantile({value}, {rate})" for name, value in QUANTILES}


def chosen(metric: str, *by: str, where: str = "", total: str = "sum") -> str:
    """Return the sum (or max) of a gauge over the LivePatches that are chosen above."""
    grouped = f"{total} by ({', '.join(by)})" if by else total
    return f"{grouped} ({metric}{{{CHOSEN}{where}}})"


def rate(metric: str, *by: str) -> dict[str, str]:
    """Return legend -> expression for a counter, summed up to these labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return {legend: f"sum by ({', '.join(by)}) (rate({metric}[$__rate_interval]))"}


def named(what: str, expressions: dict[str, str]) -> dict[str, str]:
    """Put a word before each legend."""
    return {f"{what} {legend}": expression for legend, expression in expressions.items()}


PODS, STATE = "podgraft_livepatch_pods", "{{state}}"
PATCHED = chosen(PODS, where=',state="patched"') + " / " + chosen(PODS, where=',state!="notApplicable"')
TROUBLED = chosen("podgraft_livepatch_pods_troubled", "livepatch_namespace", "livepatch", "reason")
WAIT = chosen("podgraft_livepatch_longest_wait_seconds", "livepatch_namespace", "livepatch", total="max")
TROUBLE = named("refused", rate("podgraft_engine_refusals_total", "reason")) | named(
    "failed", rate("podgraft_engine_failures_total", "reason")
)
WRITES = named("status", rate("podgraft_agent_status_writes_total", "result")) | named(
    "event", rate("podgraft_operator_events_total", "outcome")
)
# Title, unit, kind of panel, width in columns, legend -> expression.
PANELS: tuple[tuple[str, str, str, int, dict[str, str]], ...] = (
    ("Pods patched", "percentunit", "stat", 4, {"": PATCHED}),
    ("Pods pending", "short", "stat", 4, {"": chosen(PODS, where=',state="pending"')}),
    ("Pods failed", "short", "stat", 4, {"": chosen(PODS, where=',state="failed"')}),
    ("Threads waited for", "short", "stat", 4, {"": chosen("podgraft_livepatch_stragglers")}),
    ("Longest hold of a thread", "s", "stat", 4, {"": chosen("podgraft_livepatch_max_held_seconds", total="max")}),
    ("Silent nodes", "short", "stat", 4, {"": 'podgraft_nodes{state="silent"}'}),
    ("CVEs: pods by state", "short", "table", 12, {"": "sum by (cve, state) (podgraft_cve_pods)"}),
    ("CVEs: processes by phase", "short", "table", 12, {"": "sum by (cve, phase) (podgraft_cve_processes)"}),
    ("LivePatches", "short", "table", 12, {"": f"podgraft_livepatch_condition{{{CHOSEN}}} == 1"}),
    ("Pods refused or failed, by reason", "short", "table", 12, {"": TROUBLED}),
    ("Pods by state", "short", "timeseries", 8, {STATE: chosen(PODS, "state")}),
    ("Processes by phase", "short", "timeseries", 8, {"{{phase}}": chosen("podgraft_livepatch_processes", "phase")}),
    ("Threads", "short", "timeseries", 8, {STATE: chosen("podgraft_livepatch_threads", "state")}),
    ("Hold of single threads", "s", "timeseries", 8, quantiles("podgraft_thread_held_seconds")),
    ("Hold of the carrier, once for a process", "s", "timeseries", 8, quantiles("podgraft_carrier_held_seconds")),
    ("Threads migrated, by way", "ops", "timeseries", 8, rate("podgraft_threads_migrated_total", "how")),
    ("Longest wait for a thread", "s", "timeseries", 8, {"{{livepatch}}": WAIT}),
    ("Engine runs by exit", "ops", "timeseries", 8, rate("podgraft_engine_runs_total", "op", "exit")),
    ("Engine run time", "s", "timeseries", 8, quantiles("podgraft_engine_run_seconds", "op")),
    ("Refusals and failures of engines", "ops", "timeseries", 8, TROUBLE),
    ("Engines at work and waiting", "short", "timeseries", 8, {STATE: "sum by (state) (podgraft_agent_engines)"}),
    ("Look through a node", "s", "timeseries", 8, quantiles("podgraft_agent_look_seconds")),
    ("Operator: LivePatches that wait for a look", "short", "timeseries", 8, {"": "podgraft_operator_queue_length"}),
    ("Operator: time of a look", "s", "timeseries", 8, quantiles("podgraft_operator_reconcile_seconds")),
    ("Operator: looks by result", "ops", "timeseries", 8, rate("podgraft_operator_reconciles_total", "result")),
    ("Requests to the API server", "reqps", "timeseries", 8, rate("podgraft_api_requests_total", "method", "code")),
    ("Answer time of the API server", "s", "timeseries", 8, quantiles("podgraft_api_request_seconds", "method")),
    ("Status writes of agents, Events of the operator", "ops", "timeseries", 8, WRITES),
)


def dashboard() -> Json:
    """Return the whole dashboard."""
    return {
        "uid": "podgraft",
        "title": "podgraft",
        "tags": ["podgraft"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("namespace", "livepatch_namespace", "podgraft_livepatch_pods"),
                _variable("livepatch", "livepatch", 'podgraft_livepatch_pods{livepatch_namespace=~"$namespace"}'),
            ]
        },
        "panels": _panels(),
    }


def _panels() -> list[Json]:
    panels: list[Json] = []
    x = y = 0
    for number, (title, unit, kind, width, expressions) in enumerate(PANELS, 1):
        if x + width > WIDTH:
            x, y = 0, y + HEIGHT
        targets = [
            {
                "refId": chr(ord("A") + at),
                "expr": expression,
                "legendFormat": legend,
                "instant": kind != "timeseries",
                "range": kind == "timeseries",
                "format": "table" if kind == "table" else "time_series",
            }
            for at, (legend, expression) in enumerate(expressions.items())
        ]
        panel: Json = {
            "id": number,
            "title": title,
            "type": kind,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
            "targets": targets,
        }
        if kind == "table":
            panel["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True}}}]
        panels.append(panel)
        x += width
    return panels


def _variable(name: str, label: str, metric: str) -> Json:
    query = f"label_values({metric}, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
