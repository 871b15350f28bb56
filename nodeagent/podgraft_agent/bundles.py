"""Bundles on the node: fetched from the operator's ConfigMaps, checked by digest, cached by digest."""

import base64
import binascii
from pathlib import Path

from podgraft_api.nodepatch import CHUNK_KEY, BundleRef, chunk_name
from podgraft_bundle.bundle import decode, read_bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_kube.client import Kube


class BundleCache:
    """A folder of bundles; a file in it is checked again before it is used."""

    def __init__(self, kube: Kube, namespace: str, folder: Path) -> None:
        self._kube, self._namespace, self._folder = kube, namespace, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def path(self, ref: BundleRef) -> Path:
        """Return the file of a bundle.

        Raises:
            PodgraftError: it is not there, or not what its digest says.
            ApiError: the API server refused.
        """
        path = self._folder / f"{ref.digest.removeprefix('sha256:')}.graft"
        if _is_bundle(path, ref.digest):
            return path
        data = b"".join([await self._chunk(ref.digest, index) for index in range(ref.chunks)])
        found = decode(data)
        if found.digest != ref.digest:
            raise Refusal(Reason.BUNDLE_CORRUPT, f"asked for {ref.digest}, got {found.digest}")
        aside = path.with_suffix(".new")
        aside.write_bytes(data)
        aside.replace(path)
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


def _is_bundle(path: Path, digest: str) -> bool:
    try:
        return read_bundle(path).digest == digest
    except (FileNotFoundError, Refusal):
        return False
