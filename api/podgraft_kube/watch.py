"""List and watch one collection for ever: every way in which a watch ends is followed by a new one."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal

import structlog

from podgraft_kube.client import UNAVAILABLE, ApiError, Json, Kube

WATCH_SECONDS = 300
MAX_BACKOFF = 30.0
RECONNECT_SECONDS = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Change:
    """`listed`: a page of the whole collection as it was at `version`; else one object that was set or deleted."""

    kind: Literal["listed", "set", "deleted"]
    objects: list[Json]
    first: bool = True
    last: bool = True
    version: str = ""


async def watch(kube: Kube, path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[Change]:
    """Yield `listed` changes first and after every gap, then single ones; ends only by cancellation."""
    backoff = 0.5
    while True:
        try:
            version = ""
            async for page in kube.pages(path, **(query or {})):
                meta, first = page["metadata"], not version
                version = meta["resourceVersion"]
                yield Change("listed", page.get("items", []), first, not meta.get("continue"), version)
            backoff = 0.5
            async for change in _follow(kube, path, query or {}, version):
                yield change
        except (ApiError, *UNAVAILABLE) as error:
            # 401 and 403 as well: tokens and roles are repaired while we wait, and the pod's probe tells.
            log.warning("watch interrupted", path=path, error=str(error), again_in=backoff)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, keeps no secret
            backoff = min(backoff * 2, MAX_BACKOFF)


async def _follow(kube: Kube, path: str, query: Mapping[str, str], version: str) -> AsyncIterator[Change]:
    """Watch from a version on, over the server's regular ends, until it has forgotten that version (410)."""
    while True:
        following = dict(query) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async for event in kube.stream(path, WATCH_SECONDS + 15, **following):
            if event["type"] == "ERROR":
                status = event["object"]
                if status.get("code") == 410:
                    log.info("the past is gone: listing anew", path=path, version=version)
                    return
                raise ApiError(int(status.get("code", 500)), status.get("reason", ""), status.get("message", ""))
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                yield Change("deleted" if event["type"] == "DELETED" else "set", [event["object"]])
        await asyncio.sleep(RECONNECT_SECONDS)
