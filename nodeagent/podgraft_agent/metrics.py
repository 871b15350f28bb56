"""Prometheus metrics of the agent: sums over the node. LivePatches, CVEs and pods are the operator's labels."""

from prometheus_client import Counter, Gauge, Histogram

ENGINE_RUNS = Counter("podgraft_engine_runs", "Engine children by request and exit code", ["op", "exit"])
ENGINE_SECONDS = Histogram(
    "podgraft_engine_run_seconds",
    "How long engine children ran",
    ["op"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 90),
)
# A process that is refused is tried again with back-off, and counted each time.
REFUSALS = Counter("podgraft_engine_refusals", "Engine runs that refused, by reason", ["op", "reason"])
FAILURES = Counter(
    "podgraft_engine_failures",
    "Engine runs that failed or could not begin, by reason; deadlines are none",
    ["op", "reason"],
)
ENGINES = Gauge("podgraft_agent_engines", "Engine runs: at work, and waiting for their turn", ["state"])
PROCESSES = Gauge("podgraft_agent_processes", "Processes under work by phase", ["phase"])
THREADS = Gauge("podgraft_agent_threads", "Threads of the processes under work: all, and migrated ones", ["state"])
STRAGGLERS = Gauge("podgraft_agent_stragglers", "Threads that an engine run could not migrate and that are left")
WAITED = Gauge("podgraft_agent_longest_wait_seconds", "How long the most patient straggler has been waited for")
MIGRATIONS = Counter("podgraft_threads_migrated", "Threads that changed generation, by the way they went", ["how"])
HELD = Histogram(
    "podgraft_thread_held_seconds",
    "How long single threads were stopped to migrate them",
    buckets=(5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1),
)
CARRIER_HELD = Histogram(
    "podgraft_carrier_held_seconds",
    "How long a thread was stopped to create the helper, once for a process",
    buckets=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 5e-2, 0.1, 1),
)
ITEMS = Gauge("podgraft_agent_items", "LivePatches in pods that this node is asked for")
LOOK_SECONDS = Histogram(
    "podgraft_agent_look_seconds",
    "How long one look through the processes of the node takes",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
STATUS_WRITES = Counter("podgraft_agent_status_writes", "Writes of the NodePatch status", ["result"])
