"""What the kubectl plugin reads from the API server: LivePatches, pods, NodePatches; rights may be missing."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Self

from kubernetes.aio import config as kube_config
from kubernetes.aio.client import ApiClient, Configuration
from pydantic import Field

from podgraft_api.livepatch import PLURAL as LIVE_PATCHES
from podgraft_api.livepatch import LabelSelector
from podgraft_api.model import API_VERSION, Report
from podgraft_api.nodepatch import PLURAL as NODE_PATCHES
from podgraft_api.nodepatch import ItemReport, LivePatchRef, PodRef
from podgraft_api.selectors import selector_text
from podgraft_kube.client import ApiError, Json, Kube

GROUP = f"/apis/{API_VERSION}"


class Work(Report):
    """An item of a NodePatch as far as it is shown; an operator of another version may write more."""

    id: str
    version: int
    desired: str
    live_patch: LivePatchRef
    pod: PodRef
    containers: Annotated[tuple[Json, ...], Field(description="name and id of each")] = ()


@dataclass(frozen=True)
class Placed:
    """An item with its answer. heartbeat: when the agent last wrote (RFC 3339), None before it first did."""

    node: str
    work: Work
    report: ItemReport | None
    heartbeat: str | None


@dataclass
class Access:
    """A connection, and the namespace that is meant."""

    kube: Kube
    namespace: str

    @classmethod
    async def open(cls, *, namespace: str | None, context: str | None, kubeconfig: str | None) -> Self:
        """Connect as kubectl does: flags, then KUBECONFIG, then the pod's own account.

        Raises:
            kubernetes.aio.config.ConfigException: there is no usable configuration.
        """
        if "KUBERNETES_SERVICE_HOST" in os.environ and not (kubeconfig or context or "KUBECONFIG" in os.environ):
            return cls(await Kube.connect(), namespace or "default")
        configuration = Configuration()
        await kube_config.load_kube_config(kubeconfig, context, client_configuration=configuration)
        contexts, active = kube_config.list_kube_config_contexts(kubeconfig)
        chosen = next((one for one in contexts if one["name"] == context), active)
        return cls(Kube(ApiClient(configuration)), namespace or chosen["context"].get("namespace") or "default")

    def live_patch_path(self, name: str = "") -> str:
        """Return the path of a LivePatch of the namespace, or of all of them."""
        return f"{GROUP}/namespaces/{self.namespace}/{LIVE_PATCHES}" + (f"/{name}" if name else "")

    async def live_patch(self, name: str) -> Json:
        """Read one LivePatch; raises ApiError 404."""
        return await self.kube.get(self.live_patch_path(name))

    async def live_patches(self, *, everywhere: bool = False) -> list[Json]:
        """List LivePatches of the namespace, or of all."""
        return await self.listed(f"{GROUP}/{LIVE_PATCHES}" if everywhere else self.live_patch_path())

    async def pods(self, namespace: str | None, selector: Json | None = None) -> list[Json] | None:
        """List pods, those that a LivePatch selects or all; None without the right to."""
        query = {"labelSelector": selector_text(LabelSelector.model_validate(selector))} if selector else {}
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        return await self._allowed(path, query)

    async def placed(self) -> list[Placed] | None:
        """Return all items of all nodes with their answers; None without the right to read NodePatches."""
        bodies = await self._allowed(f"{GROUP}/{NODE_PATCHES}", {})
        return None if bodies is None else [one for body in bodies for one in placed_of(body)]

    async def listed(self, path: str, **query: str) -> list[Json]:
        """Read a collection page by page."""
        return [body async for page in self.kube.pages(path, **query) for body in page["items"]]

    async def _allowed(self, path: str, query: dict[str, str]) -> list[Json] | None:
        try:
            return await self.listed(path, **query)
        except ApiError as error:
            if error.status != 403:
                raise
            return None


def placed_of(body: Json) -> Iterable[Placed]:
    """Yield the items of one NodePatch."""
    status: dict[str, Any] = body.get("status") or {}
    reports = {(one["id"], one["version"]): one for one in status.get("items") or ()}
    for raw in (body.get("spec") or {}).get("items") or ():
        work = Work.model_validate(raw)
        answer = reports.get((work.id, work.version))
        report = ItemReport.model_validate(answer) if answer is not None else None
        yield Placed(body["metadata"]["name"], work, report, status.get("heartbeat"))
