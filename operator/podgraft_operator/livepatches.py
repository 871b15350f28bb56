"""Writing to LivePatches: finalizer and status."""

from typing import Any

from pydantic import BaseModel

from podgraft_api.livepatch import FINALIZER, PLURAL, LivePatchStatus
from podgraft_api.model import API_VERSION
from podgraft_api.progress import RolloutStatus
from podgraft_kube.client import Kube

Body = dict[str, Any]


def path(body: Body) -> str:
    """Return the path of a LivePatch."""
    meta = body["metadata"]
    return _path(meta["namespace"], meta["name"])


async def read(kube: Kube, namespace: str, name: str) -> Body | None:
    """Return a LivePatch as the API server has it now, None when there is none."""
    return await kube.find(_path(namespace, name))


async def set_finalizer(kube: Kube, body: Body, *, present: bool) -> Body:
    """Add or remove our finalizer, leaving those of others; raises ApiError 409 when somebody was faster."""
    meta = body["metadata"]
    others = [one for one in meta.get("finalizers", []) if one != FINALIZER]
    guard = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    finalizers = [*others, FINALIZER] if present else others
    return await kube.patch(path(body), {"metadata": guard | {"finalizers": finalizers}})


async def write_status(kube: Kube, body: Body, before: LivePatchStatus, status: LivePatchStatus) -> Body | None:
    """Write the status if it differs; returns the object as written."""
    if status == before:
        return None
    whole = _absent(LivePatchStatus) | status.wire()
    if status.rollout is not None:
        whole["rollout"] = _absent(RolloutStatus) | whole["rollout"]
    return await _patch_status(kube, body, whole)


async def remember(kube: Kube, body: Body, rollout: RolloutStatus) -> Body:
    """Write the memory of the rollout alone, before anything is done about it; returns the object as written."""
    return await _patch_status(kube, body, {"rollout": _absent(RolloutStatus) | rollout.wire()})


async def _patch_status(kube: Kube, body: Body, status: Body) -> Body:
    # The uid guards against a namesake made meanwhile; there is no other writer of the status.
    return await kube.patch(f"{path(body)}/status", {"metadata": {"uid": body["metadata"]["uid"]}, "status": status})


def _path(namespace: str, name: str) -> str:
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/{name}"


def _absent(model: type[BaseModel]) -> Body:
    """Return a null for each field: a merge patch keeps what it does not name."""
    return {field.alias or name: None for name, field in model.model_fields.items()}
