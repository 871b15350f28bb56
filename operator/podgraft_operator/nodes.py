"""Writing NodePatches: one request for a node, guarded by the resource version that was looked at."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import structlog

from podgraft_api.model import API_VERSION
from podgraft_api.nodepatch import PLURAL, Item
from podgraft_kube.client import ApiError, Kube
from podgraft_operator.change import Change
from podgraft_operator.world import World

# The requests of a large rollout wait for the network, one after the other, if they are not under way together.
AT_A_TIME = 16
PATH = f"/apis/{API_VERSION}/{PLURAL}"
log = structlog.get_logger(__name__)


async def write(kube: Kube, world: World, changes: Iterable[Change]) -> bool:
    """Write the changes of all nodes, some at a time; False when somebody else wrote one meanwhile: look again.

    Raises:
        ApiError, or one of podgraft_kube.client.UNAVAILABLE: the first of those met, when all writes have ended.
    """
    by_node: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_node[change.node].append(change)
    waiting = iter(by_node.items())

    async def work() -> bool:
        # One that fails takes no more: with an API server that is away, that is soon the end.
        return all([await _try_node(kube, world, node, mine) for node, mine in waiting])

    outcomes = await asyncio.gather(*(work() for _ in range(AT_A_TIME)), return_exceptions=True)
    for one in outcomes:
        if isinstance(one, BaseException):
            raise one
    return all(outcomes)


async def _try_node(kube: Kube, world: World, name: str, changes: list[Change]) -> bool:
    try:
        await _write_node(kube, world, name, changes)
    except ApiError as error:
        if error.status not in {404, 409}:
            raise
        log.info("node patch changed meanwhile", node=name, error=error.reason)
        await _reread(kube, world, name)
        return False
    return True


async def _write_node(kube: Kube, world: World, name: str, changes: list[Change]) -> None:
    known = world.nodes.get(name)
    items: dict[str, Item] = {one.id: one for one in known.items} if known is not None else {}
    # The generation that this write will make: it grows with every write, so a version never comes back.
    version = known.meta["generation"] + 1 if known is not None else 1
    for change in changes:
        _say(name, change, items.pop(change.id, None))
        if change.item is not None:
            items[change.id] = change.item.model_copy(update={"version": version})
    spec = {"items": [one.wire() for one in items.values()]}
    if known is None:
        if items:
            world.see("nodepatches", await kube.create(PATH, _new(name, spec)), watched=False)
        return
    meta = {key: known.meta[key] for key in ("uid", "resourceVersion")}
    if items:
        body = await kube.patch(f"{PATH}/{name}", {"metadata": meta, "spec": spec})
        world.see("nodepatches", body, watched=False)
    else:
        await kube.delete(f"{PATH}/{name}", {"preconditions": meta})
        world.see("nodepatches", {"metadata": known.meta}, deleted=True, watched=False)


def _say(node: str, change: Change, before: Item | None) -> None:
    item = change.item or before
    if item is not None:
        op = {"Applied": "apply", "Reverted": "revert"}[item.desired] if change.item is not None else "remove"
        log.info("ask", node=node, pod=item.pod.name, op=op, patch=item.bundle.name)


def _new(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "podgraft-operator"}
    return {
        "apiVersion": API_VERSION,
        "kind": "NodePatch",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


async def _reread(kube: Kube, world: World, name: str) -> None:
    body = await kube.find(f"{PATH}/{name}")
    known = world.nodes.get(name)
    if body is not None:
        world.see("nodepatches", body, watched=False)
    elif known is not None:
        world.see("nodepatches", {"metadata": known.meta}, deleted=True, watched=False)
