"""Keys, signing, and the question whether a bundle may be used: ed25519 by `cryptography`.

Imported by those who sign or verify, never by the engine: it is given bundles that have been verified.
"""

import base64
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from podgraft_bundle.bundle import Bundle
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.signatures import Signature, joined, statement

MAX_KEY_FILE = 4096
SHORT = 16  # hex digits of a key id in sentences; files and JSON have all 64


@dataclass(frozen=True)
class Trust:
    """The keys that a cluster, or a user, trusts; and whether they do without. Empty and strict: nothing is let in."""

    keys: tuple[Ed25519PublicKey, ...] = ()
    allow_unsigned: bool = False

    def ids(self) -> set[str]:
        """Return the ids of the trusted keys."""
        return {key_id(key) for key in self.keys}

    def check(self, bundle: Bundle) -> tuple[str, ...]:
        """Return the ids of the trusted keys that signed the bundle.

        A wrong signature under a trusted key is refused even where another one is right: somebody tampered.

        Raises:
            Refusal: BAD_SIGNATURE, UNSIGNED_BUNDLE or UNTRUSTED_SIGNATURE; the last two not with allow_unsigned.
        """
        known = {key_id(key): key for key in self.keys}
        trusted = tuple(one for one in bundle.signatures if one.key in known)
        for one in trusted:
            try:
                known[one.key].verify(one.value, statement(bundle.digest))
            except InvalidSignature:
                detail = f"the signature by key {one.key[:SHORT]} is not for {bundle.digest}"
                raise Refusal(Reason.BAD_SIGNATURE, detail) from None
        if not trusted and not self.allow_unsigned:
            trusts = ", ".join(sorted(one[:SHORT] for one in known)) or "none"
            if not bundle.signatures:
                raise Refusal(Reason.UNSIGNED_BUNDLE, f"the bundle has no signature; trusted keys: {trusts}")
            signed = ", ".join(one.key[:SHORT] for one in bundle.signatures)
            raise Refusal(Reason.UNTRUSTED_SIGNATURE, f"signed by {signed}; trusted keys: {trusts}")
        return tuple(one.key for one in trusted)


def key_id(key: Ed25519PublicKey) -> str:
    """Return the name of a key: as `openssl pkey -pubin -outform DER | sha256sum` prints it."""
    return hashlib.sha256(
        key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def sign(bundle: Bundle, key: Ed25519PrivateKey) -> Bundle:
    """Return the bundle with one more signature, or a newer one of the same key; its digest stays."""
    value = base64.b64encode(key.sign(statement(bundle.digest))).decode()
    one = Signature(key=key_id(key.public_key()), ed25519=value)
    return replace(bundle, signatures=joined(bundle.signatures, one))


def write_key_pair(private: Path, public: Path) -> str:
    """Make a key, write it as PEM (PKCS #8, mode 0600; SubjectPublicKeyInfo), and return its id.

    Raises:
        Refusal: FILE_EXISTS; a key that is overwritten can sign nothing any more.
        OSError: the folder cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    shown = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    for path in (private, public):
        if path.is_symlink() or path.exists():
            raise Refusal(Reason.FILE_EXISTS, f"{path} is there already")
    _create(private, secret, 0o600)
    _create(public, shown, 0o644)
    return key_id(key.public_key())


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key that nobody but its owner may read; raises Refusal(BAD_KEY), OSError as open does."""
    with path.open("rb") as file:
        # Of the file that was opened, for the name may lead to another one meanwhile.
        mode = os.fstat(file.fileno()).st_mode
        text = file.read(MAX_KEY_FILE + 1)
    if stat.S_ISREG(mode) and mode & 0o077:
        raise Refusal(Reason.BAD_KEY, f"{path} has mode {stat.S_IMODE(mode):04o}: others may read or change it")
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Refusal(Reason.BAD_KEY, f"{path} is no private key in PEM without a passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Refusal(Reason.BAD_KEY, f"{path} is a key of another kind, not ed25519")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key; raises Refusal(BAD_KEY), OSError as open does."""
    with path.open("rb") as file:
        text = file.read(MAX_KEY_FILE + 1)
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise Refusal(Reason.BAD_KEY, f"{path} is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Refusal(Reason.BAD_KEY, f"{path} is a key of another kind, not ed25519")
    return key


def read_trust(folder: Path | None, *, allow_unsigned: bool) -> Trust:
    """Read all *.pem of a folder (the chart mounts it); raises as read_public_key does: half a list is no list."""
    files: Iterable[Path] = sorted(folder.glob("*.pem")) if folder is not None else ()
    return Trust(tuple(read_public_key(path) for path in files), allow_unsigned)


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise Refusal(Reason.FILE_EXISTS, f"{path} is there already") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
