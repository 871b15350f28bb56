"""Bundles in OCI registries, by `oras`: pushed as an artifact of their own kind, pulled by digest alone.

Nothing that a registry says is believed: sizes are limits before they are read, digests are computed here, and where
a redirect or a token service leads is looked at again. Source: OCI distribution spec 1.1, image spec 1.1 ("Guidelines
for Artifact Usage").
"""

import contextlib
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oras.auth
import oras.auth.token
import oras.provider
import requests
from oras.container import Container

from podgraft_bundle.bundle import MAX_BUNDLE
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.guard import Guard

ARTIFACT_TYPE = "application/vnd.podgraft.bundle.v1"
MEDIA_TYPE = "application/vnd.podgraft.graft.v1+tar"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_MAX_MANIFEST = 64 * 1024
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3})(:\d+)?")
_PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
# A host needs a dot or a port: without one it could not be told from a part of the path.
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*(?::\d{1,5})?)"
    rf"/(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Access:
    """Which registries may be asked, and how.

    allow: prefixes such as registry.example or registry.example/team; empty for any. plain_http: hosts (with port)
    without TLS; loopback is one of them unless `ca` is given. ca: a PEM file in place of the public authorities.
    credentials: docker config files, besides that of the user. seconds: for one pull or push.
    """

    allow: tuple[str, ...] = ()
    plain_http: tuple[str, ...] = ()
    ca: Path | None = None
    credentials: tuple[Path, ...] = ()
    seconds: float = 60.0


@dataclass(frozen=True)
class Reference:
    """registry/repository, with a tag or a digest or both."""

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        return f"{self.host}/{self.path}" + (f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag else "")


def parse_reference(text: str) -> Reference:
    """Read registry/repository[:tag][@sha256:digest]; raises Refusal(REGISTRY_NOT_ALLOWED) for anything else."""
    found = _REFERENCE.fullmatch(text)
    if found is None or not re.search("[.:]", found["host"]):
        raise Refusal(
            Reason.REGISTRY_NOT_ALLOWED,
            f"{text!r} is no reference",
            "write registry.example/path@sha256:digest; the registry has a dot or a port in its name",
        )
    return Reference(found["host"], found["path"], found["tag"], found["digest"])


def permitted(text: str, access: Access) -> Reference:
    """Return the reference of a bundle that may be pulled; raises Refusal(REGISTRY_NOT_ALLOWED)."""
    wanted = parse_reference(text)
    if wanted.digest is None:
        hint = "name the artifact by its digest, as podgraft push prints it; a tag is no name for code"
        raise Refusal(Reason.REGISTRY_NOT_ALLOWED, f"{text} has no digest", hint)
    name = f"{wanted.host}/{wanted.path}"
    if access.allow and not any(name == one or name.startswith(one.rstrip("/") + "/") for one in access.allow):
        raise Refusal(Reason.REGISTRY_NOT_ALLOWED, f"{name} is not among {', '.join(access.allow)}")
    return wanted


def pull(reference: str, access: Access) -> bytes:
    """Return the bytes of the .graft file that an artifact holds; they are not decoded yet.

    Raises:
        Refusal: the reference is not allowed or has no digest, or what came is not what the digest says.
        PodgraftError: REGISTRY_UNREACHABLE, worth another try.
    """
    wanted = permitted(reference, access)
    with _connected(wanted, access) as registry:
        url = f"{registry.prefix}://{Container(str(wanted)).manifest_url()}"
        answer = _good(registry.do_request(url, "GET", headers={"Accept": _MANIFEST_TYPE}), wanted)
        layer = _the_layer(_checked(answer.content, wanted.digest or "", _MAX_MANIFEST), wanted)
        blob = _good(registry.get_blob(Container(str(wanted)), layer["digest"]), wanted)
        return _checked(blob.content, layer["digest"], MAX_BUNDLE)


def push(data: bytes, target: str, access: Access) -> Reference:
    """Store a .graft file and return the reference to pull it by; the same file gives the same digest.

    Raises:
        Refusal: the target is not allowed, or the registry does not take it.
        PodgraftError: REGISTRY_UNREACHABLE.
    """
    wanted = parse_reference(target)
    if wanted.digest is not None:
        raise Refusal(Reason.REGISTRY_NOT_ALLOWED, f"{target}: the digest is found by pushing", "name at most a tag")
    config, layer = _descriptor(_EMPTY_TYPE, _EMPTY), _descriptor(MEDIA_TYPE, data)
    manifest = {
        "schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": config, "layers": [layer],
    }  # fmt: skip
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    pushed = Reference(wanted.host, wanted.path, digest=_digest(text))
    container = Container(str(wanted if wanted.tag else pushed))
    with _connected(wanted, access) as registry, tempfile.TemporaryDirectory() as folder:
        for descriptor, blob in ((config, _EMPTY), (layer, data)):
            file = Path(folder) / "blob"
            file.write_bytes(blob)
            _good(registry.upload_blob(str(file), container, descriptor), wanted)
        url = f"{registry.prefix}://{container.manifest_url()}"
        _good(registry.do_request(url, "PUT", data=text, headers={"Content-Type": _MANIFEST_TYPE}), wanted)
    return pushed


class _Tokens(oras.auth.token.TokenAuth):  # type: ignore[misc] # the library has no types
    """Oras' token authentication, and two things that it does not do.

    A registry may ask for the password directly; and a token to read must be changed for one to write.
    """

    def authenticate_request(
        self, original: requests.Response, headers: dict[str, str], refresh: bool = False
    ) -> tuple[dict[str, str], bool]:
        if original.headers.get("Www-Authenticate", "").lower().startswith("basic"):
            known = getattr(self, "_basic_auth", None)
            return ({**headers, "Authorization": f"Basic {known}"}, True) if known else (headers, False)
        refresh = refresh or "Authorization" in original.request.headers
        answer: tuple[dict[str, str], bool] = super().authenticate_request(original, headers, refresh)
        return answer


oras.auth.auth_backends[_Tokens.__name__] = _Tokens
# What it logs as errors we raise, with a reason.
logging.getLogger("oras.logger").setLevel(logging.CRITICAL)


class _Registry(oras.provider.Registry):  # type: ignore[misc] # the library has no types
    """One registry for one pull or push."""

    def do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        # Oras' own decorator tries everything five times over two minutes, refusals too; our callers try again later.
        once = oras.provider.Registry.do_request.__wrapped__
        response: requests.Response = once(self, *arguments, **options)
        return response


@contextlib.contextmanager
def _connected(wanted: Reference, access: Access) -> Iterator[_Registry]:
    """Yield a client for one registry; trouble is told without addresses, for that of a redirect may hold a secret."""
    plain = wanted.host in access.plain_http or (access.ca is None and _LOOPBACK.fullmatch(wanted.host) is not None)
    verify = str(access.ca) if access.ca else True
    registry = _Registry(insecure=plain, tls_verify=verify, auth_backend=_Tokens.__name__)
    # A registry with TLS leads nowhere without; a plain one may have a plain token service, if that is named as well.
    guard = Guard({wanted.host, *access.plain_http} if plain else set(), MAX_BUNDLE, access.seconds)
    for scheme in ("http://", "https://"):
        registry.session.mount(scheme, guard)
    registry.session.max_redirects = 5
    registry.session.headers["Accept-Encoding"] = "identity"
    try:
        registry.auth.load_configs(Container(str(wanted)), [str(one) for one in access.credentials if one.is_file()])
        yield registry
    except requests.exceptions.SSLError as error:
        raise PodgraftError(Reason.REGISTRY_UNREACHABLE, f"{wanted.host}: its certificate is not accepted") from error
    except OSError as error:  # requests' own errors are of this kind, and so is a file that cannot be read
        raise PodgraftError(Reason.REGISTRY_UNREACHABLE, f"{wanted.host}: {type(error).__name__}") from error
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        # What oras raises where it asks for a password that it does not have, or cannot read an answer.
        raise Refusal(Reason.REGISTRY_REFUSED, f"{wanted.host}: no credentials that it accepts") from error


def _good(response: requests.Response, wanted: Reference) -> requests.Response:
    status = response.status_code
    if status >= 500 or status == 429:
        raise PodgraftError(Reason.REGISTRY_UNREACHABLE, f"{wanted}: HTTP status {status}")
    if status not in {200, 201, 202}:
        raise Refusal(Reason.REGISTRY_REFUSED, f"{wanted}: HTTP status {status}")
    return response


def _the_layer(text: bytes, wanted: Reference) -> dict[str, Any]:
    """Return the descriptor of the one layer; an index, an image or anything else is no bundle."""
    try:
        layers = json.loads(text)["layers"]
        (layer,) = (one for one in layers if one["mediaType"] == MEDIA_TYPE)
        size, digest = int(layer["size"]), str(layer["digest"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refusal(Reason.NOT_A_BUNDLE, f"{wanted} has no single layer of type {MEDIA_TYPE}") from None
    if len(layers) != 1 or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise Refusal(Reason.NOT_A_BUNDLE, f"{wanted} has more than the bundle in it, or no SHA-256 digest")
    if size > MAX_BUNDLE:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{wanted} holds {size} bytes, the limit is {MAX_BUNDLE}")
    return {"digest": digest, "size": size}


def _checked(data: bytes, digest: str, limit: int) -> bytes:
    if len(data) > limit:
        raise Refusal(Reason.BUNDLE_TOO_LARGE, f"{digest} has {len(data)} bytes, the limit is {limit}")
    if _digest(data) != digest:
        raise Refusal(Reason.BUNDLE_CORRUPT, f"the registry answered {digest} with {_digest(data)}")
    return data


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
