"""kopf's part: it watches LivePatches and tells the world; nothing is decided here.

Pods and NodePatches are watched by `watches`: there are thousands, and kopf copies each object for each event. That
was more than half of the operator's processor time with 10,000 pods (`make scale`, profiled).
"""

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import kopf

from podgraft_api.model import GROUP, VERSION
from podgraft_operator.world import World


async def follow(world: World) -> None:
    """Watch all LivePatches until cancelled."""
    registry = kopf.OperatorRegistry()
    _register(registry, world)
    stop = asyncio.Event()
    # kopf ends by its flag: cancelled, it would log each of its tasks as an error.
    watching = asyncio.create_task(
        kopf.operator(registry=registry, settings=_settings(), standalone=True, clusterwide=True, stop_flag=stop)
    )
    try:
        await asyncio.shield(watching)
    except asyncio.CancelledError:
        stop.set()
        await watching
        raise


def _settings() -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.posting.enabled = False
    # Discovery is enough at start; to watch CRDs for ever would need more rights.
    chosen.scanning.disabled = True
    # kopf removes its finalizer wherever it sees no use for it: it must not be the one that guards reverts.
    chosen.persistence.finalizer = "podgraft.dev/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="podgraft.dev")
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="podgraft.dev")
    return chosen


def _register(registry: kopf.OperatorRegistry, world: World) -> None:
    @kopf.on.login(registry=registry, id="login")
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # The same order as our own client; kopf's default would import the whole synchronous client.
        if "KUBECONFIG" in os.environ:
            return kopf.login_with_kubeconfig(**kwargs)
        found = kopf.login_with_service_account(**kwargs)
        return dataclasses.replace(found, server=api_address(os.environ)) if found else None

    @kopf.on.event(GROUP, VERSION, "livepatches", registry=registry, id="see-livepatches")
    async def see(event: kopf.RawEvent, **_: Any) -> None:
        world.see("livepatches", dict(event["object"]), deleted=event["type"] == "DELETED")


def api_address(environment: Mapping[str, str]) -> str:
    """Return the API server as the kubelet names it: kopf's own `kubernetes.default.svc` needs a cluster DNS."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
