"""Writing NodePatches: one request for a node, guarded by the resource version that was looked at."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import structlog

from podgraft_api.model import API_VERSION
from podgraft_api.nodepatch import PLURAL, Item
from podgraft_kube.client import ApiError, Kube
from podgraft_operator.change import Change
from podgraft_operator.world import World

PATH = f"/apis/{API_VERSION}/{PLURAL}"
log = structlog.get_logger(__name__)


async def write(kube: Kube, world: World, changes: Iterable[Change]) -> bool:
    """Write the changes of all nodes; False when a node was written by somebody else meanwhile: look again."""
    by_node: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        by_node[change.node].append(change)
    fresh = True
    for node, mine in by_node.items():
        try:
            await _write_node(kube, world, node, mine)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
            log.info("node patch changed meanwhile", node=node, error=error.reason)
            await _reread(kube, world, node)
            fresh = False
    return fresh


async def _write_node(kube: Kube, world: World, name: str, changes: list[Change]) -> None:
    known = world.nodes.get(name)
    items: dict[str, Item] = {one.id: one for one in known.items} if known is not None else {}
    # The generation that this write will make: it grows with every write, so a version never comes back.
    version = known.body["metadata"]["generation"] + 1 if known is not None else 1
    for change in changes:
        _say(name, change, items.pop(change.id, None))
        if change.item is not None:
            items[change.id] = change.item.model_copy(update={"version": version})
    spec = {"items": [one.wire() for one in items.values()]}
    if known is None:
        if items:
            world.see("nodepatches", await kube.create(PATH, _new(name, spec)), watched=False)
        return
    meta = {key: known.body["metadata"][key] for key in ("uid", "resourceVersion")}
    if items:
        body = await kube.patch(f"{PATH}/{name}", {"metadata": meta, "spec": spec})
        world.see("nodepatches", body, watched=False)
    else:
        await kube.delete(f"{PATH}/{name}", {"preconditions": meta})
        world.see("nodepatches", known.body, deleted=True, watched=False)


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
        world.see("nodepatches", known.body, deleted=True, watched=False)
