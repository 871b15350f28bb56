"""The node: what its NodePatch asks for, a worker for every process that it is about, and the answers."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import structlog
from pydantic import ValidationError

from podgraft_agent import metrics
from podgraft_agent.finder import Finder, Found
from podgraft_agent.progress import Progress
from podgraft_agent.report import item_report
from podgraft_agent.worker import Goal, Tools, Worker
from podgraft_api.nodepatch import Desired, Item, ItemReport, NodePatchStatus, Phase, ProcessReport

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

    def take(self, body: dict[str, Any]) -> None:
        """Take in the NodePatch as it is now."""
        if self.generation == -1:
            # The agent has just started: what its predecessor wrote says which processes to ask first.
            self._prior = _prior(body)
        self.generation = body["metadata"]["generation"]
        self.items, self.unreadable = {}, {}
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
        found = await asyncio.to_thread(self._finder.running, wanted) if wanted else {}
        kept: set[WorkerKey] = set()
        for item in items:
            for container in item.containers:
                for one in found.get((container.id, item.bundle.build_id), ()):
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
            or item_report(item, by_item.get(item.id, ()), looked=(item.id, item.version) in self._looked)
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
        goal = Goal(item.desired, item.bundle, float(item.thread_deadline_seconds))
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
        task = asyncio.create_task(worker.run(), name=f"{item.pod.name}/{container}/{found.pid}")
        self._tasks.add(task)
        task.add_done_callback(self._ended(key, worker))

    def _ended(self, key: WorkerKey, worker: Worker) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._workers.get(key) is worker:
                del self._workers[key]
            if not task.cancelled() and task.exception() is not None:
                log.error("worker ended by a bug", task=task.get_name(), exc_info=task.exception())
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

    def _count(self) -> None:
        phases = [worker.progress.phase for worker in self._workers.values()]
        for phase in Phase:
            metrics.PROCESSES.labels(phase.value).set(phases.count(phase))


def _prior(body: dict[str, Any]) -> Prior:
    try:
        status = NodePatchStatus.model_validate(body.get("status") or {})
    except ValidationError as error:
        # An agent of another version wrote it; the processes themselves say where they stand.
        log.warning("the status before is not understood", error=str(error))
        return {}
    return {(item.id, one.pid, one.start_time): one for item in status.items for one in item.processes}
