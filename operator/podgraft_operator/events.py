"""Kubernetes Events about LivePatches: repeated ones are counted, many are held back, none stops the operator."""

import asyncio
import socket
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from podgraft_api.livepatch import LivePatchStatus
from podgraft_api.model import API_VERSION
from podgraft_kube.client import UNAVAILABLE, ApiError, Kube
from podgraft_operator import metrics
from podgraft_operator.rollout import PodState
from podgraft_operator.turns import Mark, Turn, condition_turn, details, mark, pods_turn

CONTROLLER = "podgraft.dev/operator"
# An Event that comes again within this time is the same one (client-go, tools/events: six minutes).
SERIES_SECONDS = 360.0
# A series is written anew at most this often.
SERIES_WRITE_SECONDS = 30.0
# So many at once, then one for each refill, for one LivePatch.
BURST, REFILL_SECONDS = 20, 30.0
# Pods that come to stand in the same way within this time share an Event.
GATHER_SECONDS = 10.0
POST_SECONDS = 3.0
REMEMBERED = 4096
TOLD: tuple[Mark, ...] = ("patched", "failed", "reverted")
Body = dict[str, Any]
log = structlog.get_logger(__name__)


@dataclass
class _Series:
    name: str
    count: int
    last: float
    written: float


@dataclass
class _About:
    """What is known of one LivePatch: how its pods stood, what is not told yet, how many Events it may still have."""

    marks: dict[str, Mark] = field(default_factory=dict)
    untold: dict[Mark, dict[str, str]] = field(default_factory=dict)
    told: float = -GATHER_SECONDS
    tokens: float = BURST
    refilled: float = 0.0


class Recorder:
    """Remembers what it said; a restarted operator begins anew and says nothing of what it finds done."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube, self._clock = kube, clock
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        self._about: dict[str, _About] = {}

    async def observe(
        self, body: Body, before: LivePatchStatus, after: LivePatchStatus, states: Iterable[PodState]
    ) -> None:
        """Tell the turning points between two states of a LivePatch."""
        states = tuple(states)
        turn = condition_turn(before, after)
        for one in self._gathered(body["metadata"]["uid"], states, flush=turn is not None):
            await self.post(body, one)
        if turn is not None:
            await self.post(body, turn)

    async def leave(self, body: Body, states: Iterable[PodState]) -> None:
        """Tell what is left to tell of a LivePatch that goes."""
        for one in self._gathered(body["metadata"]["uid"], tuple(states), flush=True):
            await self.post(body, one)

    def keep(self, uids: set[str]) -> None:
        """Forget every other LivePatch."""
        self._about = {uid: about for uid, about in self._about.items() if uid in uids}

    async def post(self, body: Body, turn: Turn) -> None:
        """Post or count one Event; what the API server does not take within 3 s is logged and lost."""
        meta = body["metadata"]
        log.info("event", kind=turn.kind, reason=turn.reason, note=turn.note)
        key = (meta["uid"], turn.kind, turn.reason, turn.action, turn.note)
        now = self._clock()
        known = self._series.get(key)
        try:
            async with asyncio.timeout(POST_SECONDS):
                if known is not None and now - known.last < SERIES_SECONDS:
                    await self._repeat(meta["namespace"], known, now)
                elif not self._may_post(meta["uid"], now):
                    metrics.EVENTS.labels("held_back").inc()
                else:
                    await self._create(body, turn, key, now)
        except (ApiError, *UNAVAILABLE) as error:
            # A namespace that is being deleted takes none; an API server that is away must not stop the rollout.
            metrics.EVENTS.labels("lost").inc()
            log.warning("event not accepted", reason=turn.reason, error=str(error))

    async def _create(self, body: Body, turn: Turn, key: tuple[str, ...], now: float) -> None:
        event = _event(body, turn)
        await self._kube.create(_path(body["metadata"]["namespace"]), event)
        metrics.EVENTS.labels("posted").inc()
        self._series[key] = _Series(event["metadata"]["name"], 1, now, now)
        self._series.move_to_end(key)
        while len(self._series) > REMEMBERED:
            self._series.popitem(last=False)

    async def _repeat(self, namespace: str, known: _Series, now: float) -> None:
        known.count, known.last = known.count + 1, now
        metrics.EVENTS.labels("repeated").inc()
        if known.count > 2 and now - known.written < SERIES_WRITE_SECONDS:
            return
        known.written = now
        series = {"count": known.count, "lastObservedTime": _now()}
        await self._kube.patch(f"{_path(namespace)}/{known.name}", {"series": series})

    def _may_post(self, uid: str, now: float) -> bool:
        about = self._about.setdefault(uid, _About(refilled=now))
        about.tokens = min(BURST, about.tokens + (now - about.refilled) / REFILL_SECONDS)
        about.refilled = now
        if about.tokens < 1:
            return False
        about.tokens -= 1
        return True

    def _gathered(self, uid: str, states: tuple[PodState, ...], *, flush: bool) -> list[Turn]:
        now = self._clock()
        first = uid not in self._about
        about = self._about.setdefault(uid, _About(refilled=now))
        marks = {one.pod.uid: mark(one) for one in states}
        for one in states:
            reached = marks[one.pod.uid]
            if first or about.marks.get(one.pod.uid) == reached:
                continue
            for others in about.untold.values():
                others.pop(one.pod.name, None)
            detail = details(one) if reached == "failed" else ""
            about.untold.setdefault(reached, {})[one.pod.name] = detail
            _say(one, reached, detail)
        about.marks = marks
        if not flush and now - about.told < GATHER_SECONDS:
            return []
        turns = [pods_turn(one, about.untold[one], states) for one in TOLD if about.untold.get(one)]
        about.untold = {}
        if turns:
            about.told = now
        return turns


def _say(state: PodState, reached: Mark, detail: str) -> None:
    placed = state.placed
    log.info(
        "pod stands anew",
        pod=state.pod.name,
        node=placed.node if placed is not None else None,
        standing=reached,
        detail=detail or None,
    )


def _path(namespace: str) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _event(body: Body, turn: Turn) -> Body:
    """Return the object; lengths as the API server allows them (kubernetes, pkg/apis/core/validation/events.go)."""
    meta = body["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:200].rstrip('.-')}.{uuid.uuid4().hex}", "namespace": meta["namespace"]},
        "eventTime": _now(),
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "LivePatch",
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        },
        "type": turn.kind,
        "reason": turn.reason[:128],
        "action": turn.action[:128],
        "note": turn.note.encode()[:1024].decode("utf-8", "ignore"),
        "reportingController": CONTROLLER,
        "reportingInstance": socket.gethostname()[:128],
    }
