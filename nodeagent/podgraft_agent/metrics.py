"""Prometheus metrics of the agent."""

from prometheus_client import Counter, Gauge, Histogram

ENGINE_RUNS = Counter("podgraft_engine_runs", "Engine children by request and exit code", ["op", "exit"])
PROCESSES = Gauge("podgraft_processes", "Processes under work by phase", ["phase"])
HELD = Histogram(
    "podgraft_thread_held_seconds",
    "How long single threads were stopped",
    buckets=(5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 5e-2),
)
