"""The one loop: looks at every LivePatch that something happened to, asks `rollout`, writes what it says."""

import asyncio
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog
from pydantic import ValidationError

from podgraft_api.livepatch import FINALIZER, LivePatchSpec, LivePatchStatus
from podgraft_api.nodepatch import LivePatchRef
from podgraft_api.progress import RolloutStatus
from podgraft_kube.client import UNAVAILABLE, ApiError, Kube
from podgraft_operator import livepatches, metrics, nodes, pace
from podgraft_operator.bundles import BundleProblem, BundleStore, Resolved
from podgraft_operator.census import Census, count
from podgraft_operator.change import Wish
from podgraft_operator.clock import Clock
from podgraft_operator.config import Config
from podgraft_operator.conflicts import Claim, arbitrate, claim
from podgraft_operator.events import Recorder
from podgraft_operator.health import Measurement
from podgraft_operator.placement import Target
from podgraft_operator.problem import Problem
from podgraft_operator.progress import advance, decided
from podgraft_operator.prometheus import Gauges
from podgraft_operator.rollout import Plan, plan
from podgraft_operator.summary import AGENT_SILENT, summarize
from podgraft_operator.targets import matches, selector_problem, target
from podgraft_operator.turns import Turn
from podgraft_operator.watches import compare
from podgraft_operator.world import KINDS, Key, World

COALESCE_SECONDS, MAX_COALESCE_SECONDS = 0.3, 2.0
RETRY_SECONDS = 2.0
STUCK_SECONDS = 120.0
log = structlog.get_logger(__name__)


class Controller:
    """Reconciles; alone writes. A crash between two writes loses nothing: the next look starts from what is."""

    def __init__(self, kube: Kube, config: Config) -> None:
        self._kube, self._config = kube, config
        self.world = World(config.agent_seconds)
        self._bundles = BundleStore(kube, config, self.world.mark_all)
        self._claims: dict[str, dict[str, Claim]] = {}
        self._clock = Clock()
        self._gauges = Gauges(config.prometheus_urls, self._clock.now)
        self._recorder = Recorder(kube)
        self.alive_at = time.monotonic()

    async def run(self) -> None:
        """Loop until cancelled, from when everything was listed: half of the picture would look like vanished pods."""
        await self.world.ready.wait()
        await self._list_live_patches()
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._compares())
            parts.create_task(self._looks())

    async def _list_live_patches(self) -> None:
        """Know all before the first look: kopf tells one after the other, and those for the same pods are weighed."""
        while True:
            try:
                await compare(self._kube, self.world, "livepatches")
            except (ApiError, *UNAVAILABLE) as error:
                log.warning("LivePatches were not listed", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _compares(self) -> None:
        """Compare all kinds now and then, beside the looks: with a slow API server a list of all pods takes minutes."""
        while True:
            await asyncio.sleep(self._config.resync_seconds)
            try:
                for kind in KINDS:
                    await compare(self._kube, self.world, kind)
                self.world.mark_all()
            except (ApiError, *UNAVAILABLE) as error:
                log.warning("the world was not compared", error=str(error) or type(error).__name__)

    async def _looks(self) -> None:
        tidied = -self._config.resync_seconds
        while True:
            try:
                if time.monotonic() - tidied >= self._config.resync_seconds:
                    tidied = time.monotonic()
                    await self._tidy()
                began = time.monotonic()
                await self._look()
                self.alive_at = time.monotonic()
                await self._wait(self.alive_at - began)
            except (ApiError, *UNAVAILABLE) as error:
                log.warning("the API server did not do what was asked", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)

    def problem(self) -> str | None:
        """Return what the liveness probe must know: a loop that stands, a watch that does not tell what lists show."""
        quiet = time.monotonic() - self.alive_at
        if quiet > STUCK_SECONDS:
            return f"the loop has not turned for {quiet:.0f} s"
        owed = {kind: self.world.owed(kind, STUCK_SECONDS) for kind in KINDS}
        late = [f"the watch of {kind} has not told {count} changes" for kind, count in owed.items() if count]
        return "; ".join(late) or None

    async def _wait(self, took: float) -> None:
        """Wait for something to happen, at most a tick, and a moment more so that one look serves many.

        A look at a large fleet takes long and is followed by a longer moment: more answers come in, and fewer requests
        carry what they lead to.
        """
        try:
            await asyncio.wait_for(self.world.changed.wait(), self._config.tick_seconds)
        except TimeoutError:
            self.world.mark_all()
        await asyncio.sleep(min(max(COALESCE_SECONDS, took), MAX_COALESCE_SECONDS))
        self.world.changed.clear()

    async def _tidy(self) -> None:
        """Forget and remove what nothing uses; in the loop, so that no bundle is just being stored."""
        self.world.mark_all()
        self._recorder.keep({body["metadata"]["uid"] for body in self.world.live_patches.values()})
        used = {one.bundle.digest for node in self.world.nodes.values() for one in node.items}
        # Where a failed rollout goes back to.
        used |= set(map(_stable, self.world.live_patches.values()))
        for name in await self._bundles.collect(used):
            log.info("removed a bundle that nothing uses", config_map=name)

    async def _look(self) -> None:
        keys, self.world.dirty = sorted(self.world.dirty, key=self.world.age), set()
        for index, key in enumerate(keys):
            metrics.QUEUE.set(len(keys) - index + len(self.world.dirty))
            try:
                with (
                    metrics.RECONCILE_SECONDS.time(),
                    structlog.contextvars.bound_contextvars(namespace=key[0], live_patch=key[1]),
                ):
                    await self._reconcile(key)
                metrics.RECONCILES.labels("done").inc()
            except ApiError as error:
                metrics.RECONCILES.labels("refused").inc()
                # One resource that cannot be written must not keep the others waiting; the next tick tries it again.
                log.warning("not reconciled", namespace=key[0], live_patch=key[1], error=str(error))
                if error.status in {404, 409}:
                    self.world.mark(key)
            except ValidationError:
                metrics.RECONCILES.labels("not_understood").inc()
                log.exception(
                    "not reconciled: the cluster holds what the models forbid", namespace=key[0], live_patch=key[1]
                )
            except UNAVAILABLE:
                metrics.RECONCILES.labels("no_answer").inc()
                self.world.dirty.update(keys[index:])
                raise
        metrics.QUEUE.set(len(self.world.dirty))

    async def _reconcile(self, key: Key) -> None:
        known = self.world.live_patches.get(key)
        await self._withdraw_orphans(key, known["metadata"]["uid"] if known is not None else None)
        # It may have been found just now.
        body = self.world.live_patches.get(key)
        if body is None:
            return
        if "deletionTimestamp" in body["metadata"]:
            await self._leave(body)
        elif FINALIZER not in body["metadata"].get("finalizers", []):
            body = await livepatches.set_finalizer(self._kube, body, present=True)
            self.world.see("livepatches", body, watched=False)
            self.world.mark(key)
        else:
            await self._roll(body)

    async def _withdraw_orphans(self, key: Key, uid: str | None) -> None:
        """Revert what a LivePatch left behind that was removed without its finalizer, or before the end."""
        refs = {
            item.live_patch
            for node in self.world.nodes.values()
            for item in node.items
            if (item.live_patch.namespace, item.live_patch.name) == key and item.live_patch.uid != uid
        }
        if not refs:
            return
        # Asked, not remembered: with a watch that lags, a revert would take the fix from running pods.
        found = await livepatches.read(self._kube, *key)
        if found is not None:
            self.world.see("livepatches", found, watched=False)
        for ref in refs:
            if found is not None and found["metadata"]["uid"] == ref.uid:
                continue
            self._forget(ref)
            await self._advance(Wish(ref, leaving="Revert", max_parallel="100%"), [])

    def _forget(self, ref: LivePatchRef) -> None:
        uid = ref.uid
        self._claims.get(ref.namespace, {}).pop(uid, None)
        self._bundles.forget(uid)
        self._gauges.forget(uid)

    async def _advance(self, wish: Wish, targets: list[Target]) -> tuple[Plan, bool]:
        """Plan and write; returns the plan, and whether everything was written."""
        alive = set(self.world.pods.get(wish.live_patch.namespace, ()))
        decided = plan(wish, targets, list(self.world.placed(wish.live_patch.uid)), alive)
        fresh = await nodes.write(self._kube, self.world, decided.changes)
        if not fresh:
            self.world.mark((wish.live_patch.namespace, wish.live_patch.name))
        return decided, fresh

    async def _roll(self, body: dict[str, Any]) -> None:
        before, ref = _status(body), _ref(body)
        spec, resolved, problem = await self._read(body)
        bundle = resolved.ref if resolved is not None else None
        targets = self._targets(body, spec) if spec is not None else []
        if spec is not None and resolved is not None:
            targets = self._arbitrate(body, spec, resolved, before.rollout, targets)
        # Counted for the bundle that is rolled out, also while it is taken back.
        counted = Wish(ref, bundle=bundle, withdrawn=before.rollout.withdrawn if before.rollout else None)
        census = count(counted, targets, self.world.placed(ref.uid))
        measured = self._measured(body, spec, before.rollout, census)
        rollout = advance(before.rollout, pace.orders(body, spec, bundle), census, measured, self._clock.now())
        if rollout is not None and decided(before.rollout, rollout):
            # Before anything is done about it: a revert that is under way and not stored could be forgotten.
            self.world.see("livepatches", await livepatches.remember(self._kube, body, rollout), watched=False)
        wish = pace.wish(ref, spec, bundle, rollout, census.matched)
        done, _ = await self._advance(wish, targets)
        status = summarize(
            done,
            generation=body["metadata"]["generation"],
            before=before,
            bundle=resolved.info if resolved is not None else None,
            problem=problem,
            rollout=rollout,
            strategy=spec.strategy if spec is not None else None,
            paused=spec is not None and spec.paused,
        )
        await self._write_status(body, before, status, done)

    async def _read(self, body: dict[str, Any]) -> tuple[LivePatchSpec | None, Resolved | None, Problem | None]:
        """Return the spec, None when it cannot be understood; its bundle; and what stands in the way."""
        try:
            spec = LivePatchSpec.model_validate(body["spec"])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            return None, None, Problem("InvalidSpec", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        wrong = selector_problem(spec.selector)
        if wrong is not None:
            return None, None, Problem("InvalidSelector", wrong)
        try:
            return spec, await self._resolve(body, spec), None
        except BundleProblem as error:
            return spec, None, error.problem

    def _measured(
        self, body: dict[str, Any], spec: LivePatchSpec | None, memory: RolloutStatus | None, census: Census
    ) -> Measurement | None:
        """Return what Prometheus last said, while a rollout is under way that asks for it."""
        meta = body["metadata"]
        query = spec.strategy.health.prometheus if spec is not None and spec.strategy.health is not None else None
        under_way = memory is not None and memory.failure is None and not memory.complete and census.begun > 0
        if query is None or not under_way:
            self._gauges.forget(meta["uid"])
            return None
        return self._gauges.look(meta["uid"], query, lambda: self.world.mark((meta["namespace"], meta["name"])))

    async def _resolve(self, body: dict[str, Any], spec: LivePatchSpec) -> Resolved:
        meta = body["metadata"]
        return await self._bundles.resolve(meta["uid"], meta["generation"], meta["namespace"], spec.bundle)

    def _targets(self, body: dict[str, Any], spec: LivePatchSpec) -> list[Target]:
        started_before = None if spec.repatch else body["metadata"]["creationTimestamp"]
        pods = self.world.pods.get(body["metadata"]["namespace"], {}).values()
        found = (target(pod, spec.containers, started_before) for pod in pods if matches(spec.selector, pod.labels))
        return [one for one in found if one is not None]

    def _arbitrate(
        self,
        body: dict[str, Any],
        spec: LivePatchSpec,
        resolved: Resolved,
        memory: RolloutStatus | None,
        targets: list[Target],
    ) -> list[Target]:
        """Mark the pods in which another LivePatch goes first."""
        reverting = memory is not None and memory.failure is not None and memory.failure.reverting
        mine = claim(body, spec, resolved, wants=not reverting)
        namespace = body["metadata"]["namespace"]
        claims = self._claims.setdefault(namespace, {})
        claims[mine.uid] = mine
        alive = [one for one in claims.values() if self._is_there(namespace, one)]
        return arbitrate(mine, alive, targets, lambda one: self.world.on_pod(one.node, one.pod.uid))

    def _is_there(self, namespace: str, one: Claim) -> bool:
        body = self.world.live_patches.get((namespace, one.name))
        return body is not None and body["metadata"]["uid"] == one.uid

    async def _leave(self, body: dict[str, Any]) -> None:
        if FINALIZER not in body["metadata"].get("finalizers", []):
            return
        claims, uid = self._claims.get(body["metadata"]["namespace"], {}), body["metadata"]["uid"]
        if uid in claims:
            claims[uid] = replace(claims[uid], wants=False)
        keep = body["spec"].get("deletionPolicy") == "Keep"
        parallel = body["spec"].get("strategy", {}).get("maxParallel", "25%")
        wish = Wish(_ref(body), leaving="Keep" if keep else "Revert", max_parallel=parallel)
        done, fresh = await self._advance(wish, [])
        left = list(self.world.placed(wish.live_patch.uid))
        awaited = [one for one in left if not one.silent]
        late = self._age(body["metadata"]["deletionTimestamp"]) > self._config.revert_seconds
        if not fresh or (awaited and not late):
            before = _status(body)
            status = summarize(
                done,
                generation=body["metadata"]["generation"],
                before=before,
                bundle=None,
                rollout=before.rollout,
                leaving=True,
            )
            await self._write_status(body, before, status, done)
            return
        await self._recorder.leave(body, done.states)
        if left:
            where = ", ".join(sorted({f"{one.item.pod.name} on {one.node}" for one in left})[:10])
            reason = "RevertUnfinished" if awaited else AGENT_SILENT
            note = f"not waited for; reverted as soon as possible: {where}"
            await self._recorder.post(body, Turn("Warning", reason, "Revert", note))
        elif done.states and not keep:
            await self._recorder.post(body, Turn("Normal", "Reverted", "Revert", "every pod runs its old code again"))
        self._forget(wish.live_patch)
        written = await livepatches.set_finalizer(self._kube, body, present=False)
        self.world.see("livepatches", written, watched=False)
        log.info("left", open=len(left))

    def _age(self, timestamp: str) -> float:
        return (self._clock.now() - datetime.fromisoformat(timestamp)).total_seconds()

    async def _write_status(
        self, body: dict[str, Any], before: LivePatchStatus, status: LivePatchStatus, done: Plan
    ) -> None:
        written = await livepatches.write_status(self._kube, body, before, status)
        if written is not None:
            self.world.see("livepatches", written, watched=False)
        await self._recorder.observe(body, before, status, done.states)


def _status(body: dict[str, Any]) -> LivePatchStatus:
    return LivePatchStatus.model_validate(body.get("status") or {})


def _stable(body: dict[str, Any]) -> str:
    rollout = (body.get("status") or {}).get("rollout") or {}
    return str((rollout.get("stable") or {}).get("digest", ""))


def _ref(body: dict[str, Any]) -> LivePatchRef:
    meta = body["metadata"]
    return LivePatchRef(namespace=meta["namespace"], name=meta["name"], uid=meta["uid"])
