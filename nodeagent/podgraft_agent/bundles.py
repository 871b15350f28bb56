"""Bundles on the node: fetched from the operator's ConfigMaps, checked by digest and signature, cached by digest."""

import base64
import binascii
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from podgraft_api.nodepatch import CHUNK_KEY, BundleRef, chunk_name, signatures_name
from podgraft_bundle.bundle import decode, read_bundle, save_bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.signatures import MAX_SIGNATURES, Signature
from podgraft_bundle.trust import Trust
from podgraft_kube.client import Kube


class BundleCache:
    """A folder of bundles; a file in it is checked again before it is used. The operator's word is not enough."""

    def __init__(self, kube: Kube, namespace: str, folder: Path, trust: Trust) -> None:
        self._kube, self._namespace, self._folder, self._trust = kube, namespace, folder, trust
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def path(self, ref: BundleRef) -> Path:
        """Return the file of a bundle.

        Raises:
            Refusal: it is not what its digest says, or no trusted key has signed it.
            PodgraftError: it is not there.
            ApiError: the API server refused.
        """
        path = self._folder / f"{ref.digest.removeprefix('sha256:')}.graft"
        if self._is_good(path, ref.digest):
            return path
        data = b"".join([await self._chunk(ref.digest, index) for index in range(ref.chunks)])
        found = decode(data)
        if found.digest != ref.digest:
            raise Refusal(Reason.BUNDLE_CORRUPT, f"asked for {ref.digest}, got {found.digest}")
        signed = replace(found, signatures=await self._signatures(ref.digest))
        self._trust.check(signed)
        save_bundle(signed, path)
        return path

    def keep(self, digests: set[str]) -> None:
        """Remove every other file."""
        names = {f"{digest.removeprefix('sha256:')}.graft" for digest in digests}
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)

    async def _chunk(self, digest: str, index: int) -> bytes:
        name = chunk_name(digest, index)
        body = await self._kube.find(f"/api/v1/namespaces/{self._namespace}/configmaps/{name}")
        text = (body or {}).get("binaryData", {}).get(CHUNK_KEY)
        if text is None:
            raise PodgraftError(
                Reason.BUNDLE_TRUNCATED,
                f"ConfigMap {self._namespace}/{name} is missing or empty",
                "look at the operator; it stores bundles before it asks for them",
            )
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise Refusal(Reason.BUNDLE_CORRUPT, f"ConfigMap {name}: {error}") from error

    async def _signatures(self, digest: str) -> tuple[Signature, ...]:
        """Return what the operator has stored, which may be more than a bundle holds: old keys, rotated since."""
        name = signatures_name(digest)
        body = await self._kube.find(f"/api/v1/namespaces/{self._namespace}/configmaps/{name}")
        stored = (body or {}).get("data") or {}
        try:
            found = [Signature(key=key, ed25519=value) for key, value in sorted(stored.items())]
        except ValidationError as error:
            raise Refusal(Reason.BUNDLE_MALFORMED, f"ConfigMap {name} holds no signatures") from error
        known = self._trust.ids()
        return tuple(one for one in found if one.key in known) or tuple(found[:MAX_SIGNATURES])

    def _is_good(self, path: Path, digest: str) -> bool:
        try:
            found = read_bundle(path)
            self._trust.check(found)
        except (FileNotFoundError, Refusal):
            return False
        return found.digest == digest
