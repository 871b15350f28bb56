"""Bundles on their way to the agents: find, decode, verify, store in chunks named by digest, collect."""

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from podgraft_api.livepatch import BundleInfo, BundleSource, ConfigMapSource
from podgraft_api.nodepatch import CHUNK_KEY, BundleRef, chunk_name, signatures_name
from podgraft_bundle.bundle import Bundle, decode, encode
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.registry import permitted, pull
from podgraft_bundle.trust import read_trust
from podgraft_kube.client import ApiError, Json, Kube
from podgraft_operator.config import Config
from podgraft_operator.problem import Problem
from podgraft_operator.pulls import Pulls

# A ConfigMap may hold 1 MiB, counted after base64.
CHUNK_BYTES = 512 * 1024
LABEL = "podgraft.dev/bundle"


class BundleProblem(Exception):
    """The bundle of a LivePatch cannot be had; the problem says why, in words for its condition."""

    def __init__(self, reason: str, message: str, *, passing: bool = False) -> None:
        super().__init__(f"{reason}: {message}")
        self.problem = Problem(reason, message, passing)

    @classmethod
    def of(cls, error: PodgraftError) -> "BundleProblem":
        """Return it in the words of the one taxonomy of errors."""
        return cls(error.reason, f"{error.detail}; {error.hint}")


@dataclass(frozen=True)
class Resolved:
    """A bundle that is stored where agents can read it; functions: where those that it replaces begin."""

    ref: BundleRef
    info: BundleInfo
    functions: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Known:
    version: str
    resolved: Resolved


class BundleStore:
    """Bundles in the operator's namespace; decodes one only when its source has changed.

    pulled: called when a bundle has come from a registry, or has not.
    """

    def __init__(self, kube: Kube, config: Config, pulled: Callable[[], None]) -> None:
        self._kube = kube
        self._path = f"/api/v1/namespaces/{config.namespace}/configmaps"
        self._trust = read_trust(config.trust_dir, allow_unsigned=config.allow_unsigned)
        self._access = config.registries()
        self._known: dict[str, _Known] = {}
        self._pulls = Pulls(self._pull, pulled)

    async def resolve(self, uid: str, generation: int, namespace: str, source: BundleSource) -> Resolved:
        """Return the stored bundle of a LivePatch.

        Raises:
            BundleProblem: it does not exist, cannot be read, does not decode, is not trusted, or is still being pulled.
            ApiError: the API server refused or failed for another reason.
        """
        body: Json = {}
        if source.config_map is not None:
            body = await self._read(namespace, source.config_map)
            version = f"{body['metadata']['uid']}/{body['metadata']['resourceVersion']}/{source.config_map.key}"
        else:
            version = source.oci or str(generation)
        known = self._known.get(uid)
        if known is not None and known.version == version:
            return known.resolved
        if source.oci is not None:
            resolved = self._from_registry(source.oci)
        elif source.config_map is not None:
            resolved = await self._store(_content(body, source.config_map))
        else:
            resolved = await self._store(_base64(source.inline or "", "inline"))
        self._known[uid] = _Known(version, resolved)
        return resolved

    def _from_registry(self, reference: str) -> Resolved:
        """Return what a reference by digest names; it is pulled aside, for a slow registry must not stop the loop."""
        try:
            permitted(reference, self._access)
        except Refusal as refusal:
            raise BundleProblem.of(refusal) from refusal
        same = (known.resolved for known in self._known.values() if known.version == reference)
        resolved = next(same, None) or self._pulls.ask(reference)
        if resolved is None:
            raise BundleProblem("PullingBundle", f"{reference} is being pulled", passing=True)
        return resolved

    async def _pull(self, reference: str) -> Resolved:
        try:
            # The limit inside is looked at from answer to answer; this one frees the place, whatever the thread does.
            async with asyncio.timeout(2 * self._access.seconds):
                data = await asyncio.to_thread(pull, reference, self._access)
        except PodgraftError as error:
            raise BundleProblem.of(error) from error
        except TimeoutError as error:
            raise BundleProblem(Reason.REGISTRY_UNREACHABLE, f"{reference}: the registry takes too long") from error
        return await self._store(data)

    def forget(self, uid: str) -> None:
        """Forget a LivePatch that is gone."""
        self._known.pop(uid, None)

    async def collect(self, used: Iterable[str]) -> list[str]:
        """Delete the stored chunks of every digest that is not in `used`, and return their names."""
        self._pulls.prune()
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
            keys = self._trust.check(bundle)
        except Refusal as refusal:
            raise BundleProblem.of(refusal) from refusal
        content = encode(replace(bundle, signatures=()))
        chunks = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)]
        # Before the chunks: an agent that has found those asks once for these.
        await self._store_signatures(bundle, keys)
        for index, chunk in enumerate(chunks):
            await self._create(_chunk(bundle.digest, index, chunk))
        manifest = bundle.manifest
        ref = BundleRef(
            digest=bundle.digest,
            chunks=len(chunks),
            name=manifest.name,
            build_id=manifest.module.build_id,
            replaces=tuple(manifest.replaces),
        )
        info = BundleInfo(
            digest=bundle.digest,
            name=manifest.name,
            version=manifest.version,
            cves=tuple(manifest.cves),
            signed_by=keys,
        )
        functions = frozenset(one.entry.offset for one in manifest.functions)
        return Resolved(ref, info, functions)

    async def _store_signatures(self, bundle: Bundle, keys: tuple[str, ...]) -> None:
        """Add the signatures of trusted keys to those that are stored; another LivePatch may bring others."""
        data = {one.key: one.ed25519 for one in bundle.signatures if one.key in keys}
        if not data:
            return
        name = signatures_name(bundle.digest)
        if not await self._create(_config_map(name, bundle.digest, "signatures", data=data)):
            await self._kube.patch(f"{self._path}/{name}", {"data": data})

    async def _create(self, body: Json) -> bool:
        """Create an object; return False when one of that name is there already."""
        try:
            await self._kube.create(self._path, body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            return False
        return True


def _chunk(digest: str, index: int, data: bytes) -> Json:
    """Return one chunk. Immutable and named by digest: one that is there already is what we would have written."""
    content = {CHUNK_KEY: base64.b64encode(data).decode()}
    return _config_map(chunk_name(digest, index), digest, "chunk", immutable=True, binaryData=content)


def _config_map(name: str, digest: str, what: str, **content: Any) -> Json:
    meta = {
        "name": name,
        # A label value has at most 63 characters, a digest 71: the label selects, the annotation tells.
        "labels": {LABEL: what, "app.kubernetes.io/managed-by": "podgraft-operator"},
        "annotations": {LABEL: digest},
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, **content}


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
