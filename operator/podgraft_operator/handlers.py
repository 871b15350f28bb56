"""kopf's part: it watches and tells the world; nothing is decided here."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import kopf

from podgraft_api.model import GROUP, VERSION
from podgraft_operator.controller import Controller
from podgraft_operator.world import KINDS, Kind

STUCK_SECONDS = 120.0


def settings() -> kopf.OperatorSettings:
    """Return kopf's settings: little memory and few requests, for there are many pods (design section 7)."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.posting.enabled = False
    # Discovery is enough at start; to watch CRDs for ever would need more rights.
    chosen.scanning.disabled = True
    # kopf removes its finalizer wherever it sees no use for it: it must not be the one that guards reverts.
    chosen.persistence.finalizer = "podgraft.dev/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="podgraft.dev")
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="podgraft.dev")
    chosen.watching.field_selectors["pods"] = "status.phase=Running"
    chosen.queueing.worker_limit = 64
    # With a limit, idle workers keep their place for this long: a burst would crawl with the default of 5 s.
    chosen.queueing.idle_timeout = 0.05
    return chosen


def register(registry: kopf.OperatorRegistry, controller: Controller) -> None:
    """Register the login, one event handler for each kind, and the liveness probe."""

    @kopf.on.login(registry=registry, id="login")
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # The same order as our own client; kopf's default would import the whole synchronous client.
        if "KUBECONFIG" in os.environ:
            return kopf.login_with_kubeconfig(**kwargs)
        found = kopf.login_with_service_account(**kwargs)
        return dataclasses.replace(found, server=api_address(os.environ)) if found else None

    resources: dict[Kind, tuple[str, str, str]] = {
        "livepatches": (GROUP, VERSION, "livepatches"),
        "nodepatches": (GROUP, VERSION, "nodepatches"),
        "pods": ("", "v1", "pods"),
    }
    for kind, resource in resources.items():
        _watch(registry, controller, kind, resource)

    @kopf.on.probe(registry=registry, id="loop")
    async def loop(**_: Any) -> str:
        return check(controller)


def _watch(registry: kopf.OperatorRegistry, controller: Controller, kind: Kind, resource: tuple[str, str, str]) -> None:
    @kopf.on.event(*resource, registry=registry, id=f"see-{kind}")
    async def see(event: kopf.RawEvent, **_: Any) -> None:
        body = dict(event["object"])
        controller.world.see(kind, body, deleted=event["type"] == "DELETED")


def api_address(environment: Mapping[str, str]) -> str:
    """Return the API server as the kubelet names it: kopf's own `kubernetes.default.svc` needs a cluster DNS."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def check(controller: Controller) -> str:
    """Return "ok" while the loop turns and every watch tells what lists show.

    Raises:
        kopf.PermanentError: else, and the probe fails, so that the kubelet starts the operator again.
    """
    quiet = time.monotonic() - controller.alive_at
    if quiet > STUCK_SECONDS:
        raise kopf.PermanentError(f"the loop has not turned for {quiet:.0f} s")
    for kind in KINDS:
        owed = controller.world.owed(kind, STUCK_SECONDS)
        if owed:
            raise kopf.PermanentError(f"the watch of {kind} has not told {owed} changes")
    return "ok"
