"""A `.graft` file: a deterministic tar of `digest`, `manifest.json`, `patch.o` and maybe `signatures`, read strictly.

The digest is that of manifest.json, and the manifest names the hash of patch.o: whoever trusts the digest
trusts every byte of them. Signatures are over the digest and no part of it. What is read is encoded again and
compared: no byte of the file is without meaning.
"""

import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import FORMAT, FORMAT_VERSIONS, Manifest
from podgraft_bundle.signatures import Signature, decode_signatures, encode_signatures

MAX_BUNDLE = 16 * 2**20
MAX_MANIFEST = 4 * 2**20
DIGEST_FILE, MANIFEST_FILE, OBJECT_FILE, SIGNATURES_FILE = "digest", "manifest.json", "patch.o", "signatures"
NEEDED = (DIGEST_FILE, MANIFEST_FILE, OBJECT_FILE)
LIMITS = {DIGEST_FILE: 64, MANIFEST_FILE: MAX_MANIFEST, OBJECT_FILE: MAX_BUNDLE, SIGNATURES_FILE: 8192}
_END_OF_ARCHIVE = bytes(1024)  # two zero blocks, POSIX.1-2017 pax, "ustar Interchange Format"


@dataclass(frozen=True)
class Bundle:
    """What a .graft file says: manifest, the bytes of patch.o, `sha256:<hex>` of the manifest's bytes, signatures."""

    manifest: Manifest
    object: bytes
    digest: str
    signatures: tuple[Signature, ...] = ()


def canonical_manifest(manifest: Manifest) -> bytes:
    """Return the one JSON text of a manifest, so that equal manifests have equal digests."""
    document = manifest.model_dump(mode="json")
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def make_bundle(manifest: Manifest, object_: bytes) -> Bundle:
    """Join manifest and object; raises Refusal(BUNDLE_CORRUPT) when the manifest speaks of another object."""
    _check_object(manifest, object_)
    return Bundle(manifest, object_, _digest_of(canonical_manifest(manifest)))


def encode(bundle: Bundle) -> bytes:
    """Return the bytes of the .graft file: the same bundle gives the same bytes, everywhere."""
    text = canonical_manifest(bundle.manifest)
    members = {
        DIGEST_FILE: hashlib.sha256(text).hexdigest().encode(),
        MANIFEST_FILE: text,
        OBJECT_FILE: bundle.object,
    }
    if bundle.signatures:
        members[SIGNATURES_FILE] = encode_signatures(bundle.signatures)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, user and group names empty
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    return out.getvalue()


def decode(data: bytes) -> Bundle:
    """Read a .graft file's bytes; every deviation is a Refusal with one of the BUNDLE_* reasons."""
    if len(data) > MAX_BUNDLE:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{len(data)} bytes, the limit is {MAX_BUNDLE}")
    members = _read_members(data)
    for name in NEEDED:
        if name not in members:
            raise _incomplete(data, f"{name} is missing")
    text = members[MANIFEST_FILE]
    digest = _digest_of(text)
    if members[DIGEST_FILE] != digest.removeprefix("sha256:").encode():
        raise Refusal(Reason.BUNDLE_CORRUPT, "the digest is not that of manifest.json")
    manifest = _parse_manifest(text)
    unknown = sorted(members.keys() - LIMITS.keys())
    if unknown:
        raise Refusal(Reason.BUNDLE_UNSAFE_PATH, f"unknown member {unknown[0]!r}")
    _check_object(manifest, members[OBJECT_FILE])
    signatures = decode_signatures(members[SIGNATURES_FILE]) if SIGNATURES_FILE in members else ()
    bundle = Bundle(manifest, members[OBJECT_FILE], digest, signatures)
    expected = encode(bundle)
    if len(data) < len(expected) and expected.startswith(data):
        raise Refusal(Reason.BUNDLE_TRUNCATED, f"the file has {len(data)} of {len(expected)} bytes")
    if expected != data:
        raise Refusal(Reason.BUNDLE_CORRUPT, "the file differs from what its content encodes to")
    return bundle


def write_bundle(manifest: Manifest, object_: bytes, path: Path) -> Bundle:
    """Write a .graft file in one step (no reader sees half of it) and return what was written."""
    bundle = make_bundle(manifest, object_)
    save_bundle(bundle, path)
    return bundle


def save_bundle(bundle: Bundle, path: Path) -> None:
    """Write a .graft file in one step; raises Refusal(BUNDLE_TOO_LARGE), OSError as the file system does."""
    data = encode(bundle)
    if len(data) > MAX_BUNDLE:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{len(data)} bytes, the limit is {MAX_BUNDLE}")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
        temporary.write(data)
    umask = os.umask(0)
    os.umask(umask)
    Path(temporary.name).chmod(0o666 & ~umask)
    Path(temporary.name).replace(path)


def read_bundle(path: Path) -> Bundle:
    """Read a .graft file, at most the size limit; raises OSError as open does, Refusal as decode does."""
    with path.open("rb") as file:
        return decode(file.read(MAX_BUNDLE + 1))


def _digest_of(text: bytes) -> str:
    return "sha256:" + hashlib.sha256(text).hexdigest()


def _read_members(data: bytes) -> dict[str, bytes]:
    """Return name -> content of all members, having checked that each is a plain file of allowed size."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", format=tarfile.USTAR_FORMAT) as tar:
            for info in tar:
                _check_member(info, members)
                stream = tar.extractfile(info)
                members[info.name] = stream.read() if stream is not None else b""
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        # tarfile reports bad numbers and encodings of damaged headers as ValueError and OverflowError.
        raise _incomplete(data, f"no readable tar: {error}") from error
    return members


def _check_member(info: tarfile.TarInfo, seen: dict[str, bytes]) -> None:
    if not info.isreg() or info.issparse():
        raise Refusal(Reason.BUNDLE_UNSAFE_PATH, f"{info.name!r} is not a plain file")
    if "/" in info.name or info.name in {"", ".", ".."} or info.name in seen:
        raise Refusal(Reason.BUNDLE_UNSAFE_PATH, f"unsafe or repeated member {info.name!r}")
    limit = LIMITS.get(info.name, MAX_MANIFEST)
    if info.size > limit:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{info.name} has {info.size} bytes, the limit is {limit}")


def _incomplete(data: bytes, detail: str) -> Refusal:
    """A file that ends as a tar must is damaged inside; one that starts but does not end as a tar was cut."""
    starts = len(data) < tarfile.BLOCKSIZE or data[257:262] == b"ustar"
    cut = starts and (not data.endswith(_END_OF_ARCHIVE) or len(data) % tarfile.RECORDSIZE != 0)
    return Refusal(Reason.BUNDLE_TRUNCATED if cut else Reason.BUNDLE_CORRUPT, detail)


def _parse_manifest(text: bytes) -> Manifest:
    """Look at format, version and CPU before the schema: a newer schema must not read as a malformed one."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(Reason.BUNDLE_MALFORMED, f"manifest.json is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refusal(Reason.BUNDLE_MALFORMED, f"manifest.json is not of format {FORMAT}")
    version = document.get("format_version")
    if version not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise Refusal(Reason.BUNDLE_UNKNOWN_VERSION, f"format version {version!r}, known are {known}")
    if document.get("arch") != "x86_64":
        raise Refusal(Reason.WRONG_ARCHITECTURE, f"the bundle is for {document.get('arch')!r}, not x86_64")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise Refusal(Reason.BUNDLE_MALFORMED, f"manifest.json: {where}: {first['msg']}") from error


def _check_object(manifest: Manifest, data: bytes) -> None:
    """Compare the object with its hash, its ELF header with what the engine loads (gABI, "ELF Header")."""
    if len(data) != manifest.object.size or hashlib.sha256(data).hexdigest() != manifest.object.sha256:
        raise Refusal(Reason.BUNDLE_CORRUPT, "patch.o is not the object that the manifest names")
    if len(data) < 64 or data[:4] != b"\x7fELF":
        raise Refusal(Reason.BUNDLE_MALFORMED, "patch.o is no ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if data[4:6] != b"\x02\x01" or machine != 62:  # ELFCLASS64, ELFDATA2LSB, EM_X86_64
        raise Refusal(Reason.WRONG_ARCHITECTURE, f"patch.o is ELF machine {machine}, not x86-64")
    if kind != 1:  # ET_REL
        raise Refusal(Reason.BUNDLE_MALFORMED, f"patch.o has ELF type {kind}, not a relocatable")
