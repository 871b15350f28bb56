"""Bundles on their way to the agents: find, decode, store in chunks named by digest, collect."""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from podgraft_api.livepatch import BundleInfo, BundleSource, ConfigMapSource
from podgraft_api.nodepatch import CHUNK_KEY, BundleRef, chunk_name
from podgraft_bundle.bundle import decode
from podgraft_bundle.errors import Refusal
from podgraft_kube.client import ApiError, Json, Kube
from podgraft_operator.problem import Problem

# A ConfigMap may hold 1 MiB, counted after base64.
CHUNK_BYTES = 512 * 1024
LABEL = "podgraft.dev/bundle"


class BundleProblem(Exception):
    """The bundle of a LivePatch cannot be had; the problem says why, in words for its condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.problem = Problem(reason, message)


@dataclass(frozen=True)
class Resolved:
    """A bundle that is stored where agents can read it; functions: where those that it replaces begin."""

    ref: BundleRef
    info: BundleInfo
    functions: frozenset[int] = frozenset()
    replaces: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Known:
    version: str
    resolved: Resolved


class BundleStore:
    """Bundles in the operator's namespace; decodes one only when its source has changed."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._known: dict[str, _Known] = {}

    async def resolve(self, uid: str, generation: int, namespace: str, source: BundleSource) -> Resolved:
        """Return the stored bundle of a LivePatch.

        Raises:
            BundleProblem: it does not exist, cannot be read, or does not decode.
            ApiError: the API server refused or failed for another reason.
        """
        data: bytes | None = None
        if source.config_map is not None:
            body = await self._read(namespace, source.config_map)
            version = f"{body['metadata']['uid']}/{body['metadata']['resourceVersion']}/{source.config_map.key}"
        elif source.inline is not None:
            body, version = {}, str(generation)
        else:
            raise BundleProblem(
                "OciNotSupported",
                "bundles from OCI registries are not supported yet; use configMap or inline",
            )
        known = self._known.get(uid)
        if known is not None and known.version == version:
            return known.resolved
        data = _content(body, source.config_map) if source.config_map else _base64(source.inline or "", "inline")
        resolved = await self._store(data)
        self._known[uid] = _Known(version, resolved)
        return resolved

    def forget(self, uid: str) -> None:
        """Forget a LivePatch that is gone."""
        self._known.pop(uid, None)

    async def collect(self, used: Iterable[str]) -> list[str]:
        """Delete the stored chunks of every digest that is not in `used`, and return their names."""
        keep = set(used) | {known.resolved.ref.digest for known in self._known.values()}
        listed = await self._kube.get(self._path, labelSelector=LABEL)
        stale = [
            body["metadata"]["name"]
            for body in listed["items"]
            if body["metadata"].get("annotations", {}).get(LABEL) not in keep
        ]
        for name in stale:
            await self._kube.delete(f"{self._path}/{name}")
        return stale

    async def _read(self, namespace: str, source: ConfigMapSource) -> Json:
        body = await self._kube.find(f"/api/v1/namespaces/{namespace}/configmaps/{source.name}")
        if body is None:
            raise BundleProblem("ConfigMapNotFound", f"ConfigMap {namespace}/{source.name} does not exist")
        return body

    async def _store(self, data: bytes) -> Resolved:
        try:
            bundle = decode(data)
        except Refusal as refusal:
            raise BundleProblem(refusal.reason, f"{refusal.detail}; {refusal.hint}") from refusal
        chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        for index, chunk in enumerate(chunks):
            await self._create(_chunk(bundle.digest, index, chunk))
        manifest = bundle.manifest
        ref = BundleRef(digest=bundle.digest, chunks=len(chunks), name=manifest.name, build_id=manifest.module.build_id)
        info = BundleInfo(digest=bundle.digest, name=manifest.name, version=manifest.version, cves=tuple(manifest.cves))
        functions = frozenset(one.entry.offset for one in manifest.functions)
        return Resolved(ref, info, functions, frozenset(manifest.replaces))

    async def _create(self, body: Json) -> None:
        try:
            await self._kube.create(self._path, body)
        except ApiError as error:
            # Immutable and named by digest: what is there is what we would have written.
            if error.reason != "AlreadyExists":
                raise


def _chunk(digest: str, index: int, data: bytes) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": chunk_name(digest, index),
            # A label value has at most 63 characters, a digest 71: the label selects, the annotation tells.
            "labels": {LABEL: "chunk", "app.kubernetes.io/managed-by": "podgraft-operator"},
            "annotations": {LABEL: digest},
        },
        "immutable": True,
        "binaryData": {CHUNK_KEY: base64.b64encode(data).decode()},
    }


def _content(body: dict[str, Any], source: ConfigMapSource) -> bytes:
    where = f"key {source.key} of ConfigMap {source.name}"
    binary, text = body.get("binaryData") or {}, body.get("data") or {}
    if source.key in binary:
        return base64.b64decode(binary[source.key])
    if source.key in text:
        return _base64(text[source.key], where)
    there = ", ".join(sorted(binary | text)) or "nothing"
    raise BundleProblem("ConfigMapKeyNotFound", f"{where} does not exist; there is {there}")


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise BundleProblem("BundleNotBase64", f"{where} is no base64: {error}") from error
