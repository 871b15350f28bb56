"""The node: what its NodePatch asks for, a worker for every process that it is about, and the answers."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog
from pydantic import ValidationError

from podgraft_agent import metrics
from podgraft_agent.finder import Finder, Found, Sight
from podgraft_agent.progress import Progress
from podgraft_agent.report import Unseen, item_report
from podgraft_agent.worker import OPS, Goal, Tools, Worker
from podgraft_api.nodepatch import Desired, Item, ItemReport, NodePatchStatus, Phase, ProcessReport

# A container has processes while it runs; the kubelet's word that it does not, and the operator's, come later.
UNSEEN_SECONDS = 60.0
log = structlog.get_logger(__name__)
WorkerKey = tuple[str, str, Found]
Prior = dict[tuple[str, int, int], ProcessReport]


class Node:
    """Keeps one worker for each (item, process); knows nothing of the API server."""

    def __init__(self, finder: Finder, tools: Tools) -> None:
        self._finder, self._tools = finder, tools
        self.items: dict[str, Item] = {}
        self.unreadable: dict[str, ItemReport] = {}
        self.generation = -1
        self._workers: dict[WorkerKey, Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked: set[tuple[str, int]] = set()
        self._prior: Prior = {}
        # Container id -> since when no process of it is seen (monotonic seconds).
        self._unseen: dict[str, float] = {}

    def take(self, body: dict[str, Any]) -> None:
        """Take in the NodePatch as it is now."""
        if self.generation == -1:
            # The agent has just started: what its predecessor wrote says which processes to ask first.
            self._prior = _prior(body)
        self.generation = body["metadata"]["generation"]
        before, self.items, self.unreadable = self.items, {}, {}
        for raw in body.get("spec", {}).get("items", []):
            try:
                item = Item.model_validate(raw)
                self.items[item.id] = item
            except ValidationError as error:
                # Written by an operator of another version: to do half of what it says would be worse.
                self.unreadable[raw["id"]] = ItemReport(
                    id=raw["id"],
                    version=raw["version"],
                    phase=Phase.FAILED,
                    reason="UnknownWork",
                    message=f"this agent does not understand the item: {error.errors(include_url=False)[0]['msg']}",
                )
        self._looked &= {(item.id, item.version) for item in self.items.values()}
        for item in (one for key, one in self.items.items() if before.get(key) != one):
            log.info("asked", op=OPS[item.desired], patch=item.bundle.name, version=item.version, **_about(item))
        for item in (one for key, one in before.items() if key not in self.items):
            log.info("no longer asked", patch=item.bundle.name, **_about(item))

    def clear(self) -> None:
        """The NodePatch is gone: nothing is asked for any more."""
        self.items, self.unreadable, self.generation = {}, {}, -1
        self._looked = set()

    async def look(self) -> None:
        """Find the processes that the items are about, and see to it that each has its worker and its goal."""
        items = [item for item in self.items.values() if not self._overruled(item)]
        wanted: dict[str, set[str]] = {}
        for item in items:
            for container in item.containers:
                wanted.setdefault(container.id, set()).add(item.bundle.build_id)
        # Reading /proc of a full node takes tens of milliseconds: not in the event loop.
        with metrics.LOOK_SECONDS.time():
            sight = await asyncio.to_thread(self._finder.look, wanted) if wanted else Sight({}, frozenset())
        now = time.monotonic()
        self._unseen = {one: self._unseen.get(one, now) for one in wanted.keys() - sight.seen}
        kept: set[WorkerKey] = set()
        for item in items:
            for container in item.containers:
                for one in sight.running.get((container.id, item.bundle.build_id), ()):
                    key = (item.id, container.name, one)
                    kept.add(key)
                    self._ensure(key, item)
        for key in self._workers.keys() - kept:
            # A process that ended is dropped with its worker; of an item that is gone, nothing is undone.
            self._workers.pop(key).withdraw()
        self._looked |= {(item.id, item.version) for item in items}
        self._tools.locks = {pid: lock for pid, lock in self._tools.locks.items() if lock.locked()}
        self._tools.changed()

    def status(self) -> NodePatchStatus:
        """Return the answers to all items."""
        by_item: dict[str, list[ProcessReport]] = {}
        for (item_id, _, _), worker in self._workers.items():
            by_item.setdefault(item_id, []).append(worker.progress.report())
        reports = [
            self._overruled(item)
            or item_report(
                item,
                by_item.get(item.id, ()),
                looked=(item.id, item.version) in self._looked,
                unseen=self._not_seen(item),
            )
            for item in self.items.values()
        ]
        self._count()
        return NodePatchStatus(
            observed_generation=self.generation,
            agent_version=version("podgraft"),
            heartbeat=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            items=tuple(sorted([*reports, *self.unreadable.values()], key=lambda one: one.id)),
        )

    async def stop(self) -> None:
        """Cancel the workers, and thereby kill their engines: both are made to be killed."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ensure(self, key: WorkerKey, item: Item) -> None:
        goal = Goal(item.desired, item.bundle, float(item.thread_deadline_seconds), item.points)
        if key in self._workers:
            self._workers[key].aim(goal)
            return
        _, container, found = key
        prior = self._prior.pop((item.id, found.pid, found.start_time), None)
        progress = Progress(container, found.pid, found.start_time, desired=item.desired)
        if prior is not None:
            progress.total, progress.max_held = prior.threads_total, prior.max_held_microseconds
        worker = Worker(found, goal, progress, self._tools, look_first=prior is not None)
        self._workers[key] = worker
        # The task's context: every line that it logs says whom it is about.
        with structlog.contextvars.bound_contextvars(container=container, pid=found.pid, **_about(item)):
            task = asyncio.create_task(worker.run(), name=f"{item.pod.name}/{container}/{found.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._ended(key, worker, _about(item)))

    def _ended(self, key: WorkerKey, worker: Worker, about: dict[str, str]) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._workers.get(key) is worker:
                del self._workers[key]
            if not task.cancelled() and task.exception() is not None:
                log.error("worker ended by a bug", task=task.get_name(), exc_info=task.exception(), **about)
            self._tools.changed()

        return ended

    def _overruled(self, item: Item) -> ItemReport | None:
        """Answer a revert that must not happen: another LivePatch wants the same patch in the same pod."""
        for other in self.items.values():
            same = (other.pod.uid, other.bundle.digest) == (item.pod.uid, item.bundle.digest)
            if same and item.desired is Desired.REVERTED and other.desired is Desired.APPLIED:
                owner = f"{other.live_patch.namespace}/{other.live_patch.name}"
                return ItemReport(
                    id=item.id,
                    version=item.version,
                    phase=Phase.REVERTED,
                    desired="Reverted",
                    message=f"kept in the process for LivePatch {owner}",
                )
        return None

    def _not_seen(self, item: Item) -> Unseen | None:
        late = time.monotonic() - UNSEEN_SECONDS
        missing = [one for one in item.containers if one.id in self._unseen]
        first = min(missing, key=lambda one: self._unseen[one.id], default=None)
        return Unseen(first.name, overdue=self._unseen[first.id] < late) if first is not None else None

    def _count(self) -> None:
        there = [worker.progress for worker in self._workers.values()]
        phases = [one.phase for one in there]
        for phase in Phase:
            metrics.PROCESSES.labels(phase.value).set(phases.count(phase))
        stragglers = [thread for one in there for thread in one.stragglers.values()]
        metrics.THREADS.labels("total").set(sum(one.total for one in there))
        metrics.THREADS.labels("migrated").set(sum(one.migrated for one in there))
        metrics.STRAGGLERS.set(len(stragglers))
        metrics.WAITED.set(max((one.waited_seconds for one in stragglers), default=0.0))
        metrics.ITEMS.set(len(self.items))


def _about(item: Item) -> dict[str, str]:
    """Name an item in the log."""
    return {"namespace": item.pod.namespace, "live_patch": item.live_patch.name, "pod": item.pod.name}


def _prior(body: dict[str, Any]) -> Prior:
    try:
        status = NodePatchStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        # An agent of another version wrote it; the processes themselves say where they stand.
        log.warning("the status before is not understood", error=str(error))
        return {}
    return {(item.id, one.pid, one.start_time): one for item in status.items for one in item.processes}
