"""The signatures inside a bundle, as a member of the tar: their form alone; `trust` makes and checks them.

A signature is over the bundle's digest, and the digest is that of the manifest alone: signing a bundle once more does
not make another patch of it, so keys can change without touching a patched process.
"""

import base64
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from podgraft_bundle.errors import Reason, Refusal

MAX_SIGNATURES = 16
# A statement of ours can never be one of another program that signs with the same key.
_CONTEXT = b"podgraft.dev/graft signature v1\n"

KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Signature(BaseModel):
    """One ed25519 signature (RFC 8032). key: SHA-256 of the public key's SubjectPublicKeyInfo in DER, in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: KeyId
    # Base64 of 64 bytes; the last digit carries two bits, so any other one would be a byte without meaning.
    ed25519: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]{85}[AQgw]==$")]

    @property
    def value(self) -> bytes:
        """The 64 bytes."""
        return base64.b64decode(self.ed25519)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    signatures: Annotated[list[Signature], Field(min_length=1, max_length=MAX_SIGNATURES)]


def statement(digest: str) -> bytes:
    """Return what is signed for a bundle of this digest."""
    return _CONTEXT + digest.encode() + b"\n"


def encode_signatures(signatures: tuple[Signature, ...]) -> bytes:
    """Return the one text of these signatures, in the order of their keys."""
    document = {"signatures": [one.model_dump() for one in sorted(signatures, key=lambda one: one.key)]}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def decode_signatures(text: bytes) -> tuple[Signature, ...]:
    """Read the member; raises Refusal(BUNDLE_MALFORMED) for anything that no signer writes."""
    try:
        found = tuple(_Document.model_validate_json(text).signatures)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Refusal(Reason.BUNDLE_MALFORMED, f"signatures: {first['msg']}") from error
    if len({one.key for one in found}) != len(found):
        raise Refusal(Reason.BUNDLE_MALFORMED, "signatures: two of one key")
    return found


def joined(old: tuple[Signature, ...], new: Signature) -> tuple[Signature, ...]:
    """Return the signatures with one more, in place of an older one of the same key; raises Refusal when full."""
    rest = [one for one in old if one.key != new.key]
    if len(rest) == MAX_SIGNATURES:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"a bundle has at most {MAX_SIGNATURES} signatures")
    return tuple(sorted([*rest, new], key=lambda one: one.key))
