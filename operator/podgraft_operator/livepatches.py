"""Writing to LivePatches: finalizer and status."""

from typing import Any

from podgraft_api.livepatch import FINALIZER, PLURAL, LivePatchStatus
from podgraft_api.model import API_VERSION
from podgraft_kube.client import Kube

Body = dict[str, Any]


def path(body: Body) -> str:
    """Return the path of a LivePatch."""
    meta = body["metadata"]
    return f"/apis/{API_VERSION}/namespaces/{meta['namespace']}/{PLURAL}/{meta['name']}"


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
    absent: Body = {field.alias or name: None for name, field in LivePatchStatus.model_fields.items()}
    # The uid guards against a namesake made meanwhile; there is no other writer of the status.
    change = {"metadata": {"uid": body["metadata"]["uid"]}, "status": absent | status.wire()}
    return await kube.patch(f"{path(body)}/status", change)
