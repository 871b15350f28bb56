"""Writing the NodePatch status: only what changed, guarded by the uid of the object that was read."""

import time

import structlog

from podgraft_agent import metrics
from podgraft_agent.config import Config
from podgraft_api.nodepatch import NodePatchStatus, Phase
from podgraft_kube.client import UNAVAILABLE, ApiError, Json, Kube

BUSY = frozenset({Phase.PENDING, Phase.APPLYING, Phase.REVERTING})
log = structlog.get_logger(__name__)


class StatusWriter:
    """Knows which NodePatch is ours now, and what was written to it last."""

    def __init__(self, kube: Kube, path: str, config: Config) -> None:
        self._kube, self._path, self._config = kube, path, config
        self._uid: str | None = None
        self._written: NodePatchStatus | None = None
        self._written_at = 0.0

    def attach(self, body: Json) -> None:
        """Answer to this object from now on."""
        if body["metadata"]["uid"] != self._uid:
            self._uid, self._written = body["metadata"]["uid"], None

    def belongs_to(self, body: Json, generation: int) -> bool:
        """Return whether this object, at this generation of its spec, is what we answer to already."""
        meta = body["metadata"]
        return (meta["uid"], meta["generation"]) == (self._uid, generation)

    def forget(self) -> None:
        """The object is gone."""
        self._uid = self._written = None

    async def write(self, status: NodePatchStatus) -> None:
        """Write if something changed, or as a sign of life while there is work; a failure is tried again later."""
        if self._uid is None or not self._due(status):
            return
        absent: Json = {"items": []}
        body = {"metadata": {"uid": self._uid}, "status": absent | status.wire()}
        try:
            await self._kube.patch(f"{self._path}/status", body)
        except (ApiError, *UNAVAILABLE) as error:
            # The object was replaced, or the API server is away: the watch, or the next change, comes again.
            log.warning("status not written", error=str(error))
            metrics.STATUS_WRITES.labels("failed").inc()
            self._written = None
            return
        metrics.STATUS_WRITES.labels("done").inc()
        self._written, self._written_at = status, time.monotonic()

    def _due(self, status: NodePatchStatus) -> bool:
        if self._written is None:
            return True
        same = status.model_copy(update={"heartbeat": self._written.heartbeat}).wire() == self._written.wire()
        busy = any(one.phase in BUSY for one in status.items)
        return not same or (busy and time.monotonic() - self._written_at >= self._config.heartbeat_seconds)
