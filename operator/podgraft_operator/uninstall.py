"""What the chart's hook does before `helm uninstall` removes everything else.

`python3 -m podgraft_operator.uninstall Keep|Revert SECONDS`; without it the finalizers of LivePatches would stay, and
hold up the deletion of their namespaces for ever.
"""

import argparse
import asyncio
import os
import sys
import time

import structlog

from podgraft_api import nodepatch
from podgraft_api.livepatch import FINALIZER, PLURAL
from podgraft_api.model import API_VERSION
from podgraft_kube.client import ApiError, Json, Kube
from podgraft_kube.logs import configure_logs
from podgraft_operator import livepatches

LIST = f"/apis/{API_VERSION}/{PLURAL}"
WORK = f"/apis/{API_VERSION}/{nodepatch.PLURAL}"
OPERATOR = "podgraft-operator"
PODS = "app.kubernetes.io/name=podgraft,app.kubernetes.io/component=operator"
PAUSE_SECONDS = 1.0
log = structlog.get_logger(__name__)


class UnfinishedError(Exception):
    """Not done in time; nothing was removed that a second attempt would miss."""


async def revert(kube: Kube, seconds: float) -> None:
    """Delete every LivePatch while operator and agents are there to revert it.

    Raises:
        UnfinishedError: some are not reverted in time.
    """
    until = time.monotonic() + seconds
    while left := await _unreverted(kube):
        for body in (await kube.get(LIST))["items"]:
            if "deletionTimestamp" not in body["metadata"]:
                log.info("delete", namespace=body["metadata"]["namespace"], live_patch=body["metadata"]["name"])
                await kube.delete(livepatches.path(body), {"preconditions": {"uid": body["metadata"]["uid"]}})
        await _pause(until, f"not reverted yet: {', '.join(left)}")


async def _unreverted(kube: Kube) -> list[str]:
    """Return the LivePatches that are left, and pods of which only work of their node is left: its agent is silent."""
    there = [livepatches.path(body) for body in (await kube.get(LIST))["items"]]
    work = [
        (body["metadata"]["name"], item) for body in (await kube.get(WORK))["items"] for item in body["spec"]["items"]
    ]
    return there + [f"pod {item['pod']['namespace']}/{item['pod']['name']} on {node}" for node, item in work]


async def keep(kube: Kube, namespace: str, seconds: float) -> None:
    """End the operator, then take our finalizer from every LivePatch; processes and resources stay as they are.

    The operator first, for it would put the finalizers back. An operator that is installed later goes on from there.

    Raises:
        UnfinishedError: the operator does not end in time.
    """
    until = time.monotonic() + seconds
    await kube.delete(
        f"/apis/apps/v1/namespaces/{namespace}/deployments/{OPERATOR}", {"propagationPolicy": "Background"}
    )
    while (await kube.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=PODS))["items"]:
        await _pause(until, "the operator has not ended yet")
    while left := [
        body for body in (await kube.get(LIST))["items"] if FINALIZER in body["metadata"].get("finalizers", [])
    ]:
        for body in left:
            await _release(kube, body)
        await _pause(until, "finalizers are left")


async def _release(kube: Kube, body: Json) -> None:
    try:
        await livepatches.set_finalizer(kube, body, present=False)
    except ApiError as error:
        # Changed or gone meanwhile: the next list tells.
        if error.status not in {404, 409}:
            raise


async def _pause(until: float, what: str) -> None:
    if time.monotonic() > until:
        raise UnfinishedError(what)
    await asyncio.sleep(PAUSE_SECONDS)


async def _run(policy: str, namespace: str, seconds: float) -> None:
    async with await Kube.connect() as kube:
        if policy == "Revert":
            await revert(kube, seconds)
        else:
            await keep(kube, namespace, seconds)


def main() -> None:
    """Exit code 0 when the chart may go, 1 when not."""
    parser = argparse.ArgumentParser(prog="uninstall", description=__doc__)
    parser.add_argument("policy", choices=["Keep", "Revert"])
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    configure_logs()
    try:
        asyncio.run(_run(arguments.policy, os.environ["PODGRAFT_NAMESPACE"], arguments.seconds))
    except UnfinishedError as error:
        log.error("not uninstalled", error=str(error))  # noqa: TRY400 - the sentence says it all
        sys.exit(1)


if __name__ == "__main__":
    main()
