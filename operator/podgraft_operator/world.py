"""What the operator has seen, as the watches tell it, and which LivePatches must be looked at.

An object that vanished while a watch was broken is not told by kopf; our own watches begin with a list. Now and then
the world is compared with a list all the same: that shows a watch that is dead.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from podgraft_api.nodepatch import Item, NodePatch, Phase
from podgraft_operator.placement import Placed, settled
from podgraft_operator.targets import Pod, parse_pod

Kind = Literal["livepatches", "pods", "nodepatches"]
# The kinds of which there are thousands; the first list of the others is that of `watches.compare`.
MANY: tuple[Kind, ...] = ("pods", "nodepatches")
KINDS: tuple[Kind, ...] = ("livepatches", *MANY)
Key = tuple[str, str]
# Phases in which an agent renews its heartbeat.
BUSY = frozenset({Phase.PENDING, Phase.APPLYING, Phase.REVERTING})


@dataclass
class Node:
    """One NodePatch. heard: when its status last changed; asked: when its spec did (monotonic seconds).

    meta: of the object's metadata what a write needs; the whole object would be kept twice, here and parsed.
    """

    meta: dict[str, Any]
    parsed: NodePatch
    heard: float
    asked: float

    @property
    def items(self) -> tuple[Item, ...]:
        """The work of the node."""
        return self.parsed.spec.items


@dataclass
class World:
    """The operator's memory; losing it costs nothing but a list of everything."""

    agent_seconds: float
    live_patches: dict[Key, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Pod]] = field(default_factory=lambda: defaultdict(dict))
    nodes: dict[str, Node] = field(default_factory=dict)
    dirty: set[Key] = field(default_factory=set)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # Resource versions grow within a collection (kubernetes.io, API concepts, "Resource version comparison").
    versions: dict[tuple[Kind, str], int] = field(default_factory=dict)
    # What a list or our own write has shown and the watch not yet: version, and since when.
    unheard: dict[tuple[Kind, str], tuple[int, float]] = field(default_factory=dict)
    deleted: set[tuple[Kind, str]] = field(default_factory=set)
    # Set when the watches of pods and NodePatches have told all that there is.
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    _listed: set[Kind] = field(default_factory=set)

    def see(self, kind: Kind, body: dict[str, Any], *, deleted: bool = False, watched: bool = True) -> None:
        """Take in one object; watched: from the watch, else from a list or the answer to a write."""
        known, version = (kind, body["metadata"]["uid"]), int(body["metadata"]["resourceVersion"])
        if watched and self.unheard.get(known, (0, 0.0))[0] <= version:
            self.unheard.pop(known, None)
        if deleted:
            self.deleted.add(known)
            self.versions.pop(known, None)
        elif version <= self.versions.get(known, 0) or known in self.deleted:
            return
        else:
            self.versions[known] = version
            if not watched:
                self.unheard[known] = (version, time.monotonic())
        {"livepatches": self._live_patch, "pods": self._pod, "nodepatches": self._node}[kind](body, deleted)
        self.changed.set()

    def owed(self, kind: Kind, seconds: float) -> int:
        """Return how many changes the watch of a kind has not told within this time: a dead watch tells none."""
        late = time.monotonic() - seconds
        return sum(one == kind and since < late for (one, _), (_, since) in self.unheard.items())

    def listed(self, kind: Kind) -> None:
        """Note that a watch has told all objects of a kind once."""
        self._listed.add(kind)
        if self._listed == set(MANY):
            self.ready.set()

    def only(self, kind: Kind, there: Container[str], version: int) -> None:
        """Forget what is older than a list of this version and not in it; `there` are the uids that are."""
        known = [uid for (one, uid), seen in self.versions.items() if one == kind and seen <= version]
        for uid in known:
            if uid not in there:
                self._vanished(kind, uid)
        self.deleted = {one for one in self.deleted if one[0] != kind}

    def placed(self, live_patch_uid: str) -> Iterator[Placed]:
        """Yield the items of a LivePatch on all nodes, with the reports that answer them."""
        now = time.monotonic()
        for name, node in self.nodes.items():
            mine = [one for one in node.items if one.live_patch.uid == live_patch_uid]
            if not mine:
                continue
            status = node.parsed.status
            reports = {(one.id, one.version): one for one in status.items} if status is not None else {}
            quiet = now - max(node.heard, node.asked) > self.agent_seconds
            for item in mine:
                one = Placed(name, item, reports.get((item.id, item.version)))
                yield Placed(name, item, one.report, silent=True) if quiet and not settled(one) else one

    def silent_nodes(self) -> set[str]:
        """Return the nodes that owe an answer and have not been heard of for too long."""
        late, silent = time.monotonic() - self.agent_seconds, set()
        for name, node in self.nodes.items():
            if max(node.heard, node.asked) < late:
                status = node.parsed.status
                # Who refused or failed has answered, and sends no further sign of life.
                answered = {(one.id, one.version) for one in status.items if one.phase not in BUSY} if status else set()
                if any((one.id, one.version) not in answered for one in node.items):
                    silent.add(name)
        return silent

    def on_pod(self, node: str, pod_uid: str) -> Iterator[Placed]:
        """Yield the items of all LivePatches for one pod, with the reports that answer them."""
        known = self.nodes.get(node)
        status = known.parsed.status if known is not None else None
        reports = {(one.id, one.version): one for one in status.items} if status is not None else {}
        for item in known.items if known is not None else ():
            if item.pod.uid == pod_uid:
                yield Placed(node, item, reports.get((item.id, item.version)))

    def age(self, key: Key) -> tuple[str, Key]:
        """Return what sorts LivePatches by age: the older one is looked at first, for it may have the older right."""
        body = self.live_patches.get(key)
        return (body["metadata"]["creationTimestamp"] if body is not None else "", key)

    def mark(self, key: Key) -> None:
        """Ask for a look at a LivePatch."""
        self.dirty.add(key)
        self.changed.set()

    def mark_all(self) -> None:
        """Ask for a look at every LivePatch, and at those of which only items are left."""
        self.dirty.update(self.live_patches)
        self.dirty.update(
            (one.live_patch.namespace, one.live_patch.name) for node in self.nodes.values() for one in node.items
        )
        self.changed.set()

    def _live_patch(self, body: dict[str, Any], deleted: bool) -> None:
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        if not deleted:
            self.live_patches[key] = body
        elif self.live_patches.get(key, body)["metadata"]["uid"] == body["metadata"]["uid"]:
            self.live_patches.pop(key, None)
        self.dirty.add(key)

    def _pod(self, body: dict[str, Any], deleted: bool) -> None:
        namespace, uid = body["metadata"]["namespace"], body["metadata"]["uid"]
        before = self.pods[namespace].pop(uid, None)
        pod = None if deleted else parse_pod(body)
        if pod is not None and not pod.terminating:
            self.pods[namespace][uid] = pod
        if before != self.pods[namespace].get(uid):
            self.dirty.update(key for key in self.live_patches if key[0] == namespace)

    def _node(self, body: dict[str, Any], deleted: bool) -> None:
        name = body["metadata"]["name"]
        before = self.nodes.pop(name, None)
        now = time.monotonic()
        touched = before.items if before is not None else ()
        if not deleted:
            parsed = NodePatch.model_validate({key: body[key] for key in ("spec", "status") if key in body})
            heard = before.heard if before is not None and before.parsed.status == parsed.status else now
            asked = before.asked if before is not None and before.parsed.spec == parsed.spec else now
            meta = {key: body["metadata"][key] for key in ("name", "uid", "resourceVersion", "generation")}
            self.nodes[name] = Node(meta, parsed, heard, asked)
            touched += parsed.spec.items
        self.dirty.update((one.live_patch.namespace, one.live_patch.name) for one in touched)

    def _vanished(self, kind: Kind, uid: str) -> None:
        self.versions.pop((kind, uid), None)
        self.unheard.pop((kind, uid), None)
        if kind == "pods":
            for namespace, pods in self.pods.items():
                if pods.pop(uid, None) is not None:
                    self.dirty.update(key for key in self.live_patches if key[0] == namespace)
        elif kind == "nodepatches":
            for meta in [one.meta for one in self.nodes.values() if one.meta["uid"] == uid]:
                self._node({"metadata": meta}, deleted=True)
        else:
            for body in [one for one in self.live_patches.values() if one["metadata"]["uid"] == uid]:
                self._live_patch(body, deleted=True)
