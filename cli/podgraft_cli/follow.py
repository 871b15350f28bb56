"""A LivePatch and its NodePatches as they change: two watches into one picture."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from podgraft_api.model import API_VERSION
from podgraft_api.nodepatch import PLURAL as NODE_PATCHES
from podgraft_cli.cluster import Access, placed_of
from podgraft_cli.views import Json, PatchView, patch_view
from podgraft_kube.client import ApiError
from podgraft_kube.watch import watch

# One picture serves many changes.
COALESCE_SECONDS = 0.3
PODS_SECONDS = 5.0


class Picture:
    """What is known of one LivePatch now."""

    def __init__(self, access: Access, name: str) -> None:
        self._access, self._name = access, name
        self._changed = asyncio.Event()
        self._live_patch: Json | None = None
        self._nodes: dict[str, Json] = {}
        self._heard: set[str] = set()

    async def views(self) -> AsyncGenerator[PatchView | None]:
        """Yield the view after every change, None once the LivePatch is gone; ends with it, or with the caller."""
        body = await self._access.live_patch(self._name)
        readable = await self._access.placed() is not None
        tasks = [asyncio.create_task(self._live_patches())]
        if readable:
            tasks.append(asyncio.create_task(self._node_patches()))
        try:
            pods, read_at = None, -PODS_SECONDS
            clock = asyncio.get_running_loop().time
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), PODS_SECONDS)
                self._changed.clear()
                if len(self._heard) < len(tasks):
                    continue
                if self._live_patch is None:
                    yield None
                    return
                if clock() - read_at >= PODS_SECONDS:
                    pods, read_at = await self._access.pods(self._access.namespace, body["spec"]["selector"]), clock()
                body = self._live_patch
                placed = [one for node in self._nodes.values() for one in placed_of(node)]
                yield patch_view(body, pods, placed if readable else None)
                await asyncio.sleep(COALESCE_SECONDS)
        finally:
            for task in tasks:
                task.cancel()

    async def _live_patches(self) -> None:
        query = {"fieldSelector": f"metadata.name={self._name}"}
        async for change in watch(self._access.kube, self._access.live_patch_path(), query):
            there = change.objects if change.kind != "deleted" else []
            self._live_patch = there[0] if there else None
            self._hear("live patch")

    async def _node_patches(self) -> None:
        async for change in watch(self._access.kube, f"/apis/{API_VERSION}/{NODE_PATCHES}"):
            if change.kind == "listed" and change.first:
                self._nodes = {}
            for body in change.objects:
                if change.kind == "deleted":
                    self._nodes.pop(body["metadata"]["name"], None)
                else:
                    self._nodes[body["metadata"]["name"]] = body
            if change.last:
                self._hear("node patches")

    def _hear(self, what: str) -> None:
        self._heard.add(what)
        self._changed.set()


async def until_gone(access: Access, name: str, seconds: float) -> bool:
    """Wait for a deleted LivePatch to be gone; False when the time is over first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await access.live_patch(name)
                except ApiError as error:
                    if error.status != 404:
                        raise
                    return True
                await asyncio.sleep(1)
    return False


async def until_reverted(access: Access, name: str, asked: str, seconds: float) -> bool:
    """Wait until the revert that was asked for is done, as the operator's condition says; False when the time is over.

    Raises:
        ApiError: 404 when the LivePatch is deleted meanwhile.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                if _is_reverted(await access.live_patch(name), asked):
                    return True
                await asyncio.sleep(1)
    return False


def _is_reverted(body: Json, asked: str) -> bool:
    """Return whether the operator has taken in the request, and has nothing left to do for it.

    The memory of the rollout is written before the conditions are: only both together tell the end.
    """
    status = body.get("status") or {}
    conditions = {(one["type"], one["status"], one["reason"]) for one in status.get("conditions") or ()}
    handled = (status.get("rollout") or {}).get("handledRevert") == asked
    return handled and ("Stalled", "True", "RevertRequested") in conditions
