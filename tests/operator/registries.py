"""A real registry on loopback, in the forms that registries have: open, with a password, with tokens, with TLS."""

import base64
import contextlib
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from apiserver import free_port, listens, running
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from stage import wait

from hack import registry as program

USER, PASSWORD = "fixes", "open sesame"
# bcrypt of the password; the registry reads no other kind.
HTPASSWD = f"{USER}:$2b$05$CJO4Ou5YGbKSdCmHX9rcYeXWvV173wDqmrTZ3JsfAdKO0dBrZglAS\n"
ISSUER, SERVICE = "tests", "registry"


@contextlib.contextmanager
def real_registry(folder: Path, **config: Any) -> Iterator[str]:
    """Run docker-registry until the block ends; yield its host:port."""
    host = f"127.0.0.1:{free_port()}"
    http = {"addr": host, "secret": "x", **config.pop("http", {})}
    whole = {"version": "0.1", "storage": {"filesystem": {"rootdirectory": str(folder / "data")}}, "http": http}
    (folder / "config.yml").write_text(yaml.safe_dump(whole | config))
    with running([program.ensure(), "serve", folder / "config.yml"], folder / "registry.log") as process:
        wait(lambda: listens(host.rpartition(":")[2]) or process.poll() is not None, "the registry listens")
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield host


def password(folder: Path) -> dict[str, Any]:
    """Return the configuration of a registry that asks for a password directly."""
    (folder / "htpasswd").write_text(HTPASSWD)
    return {"auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}}


def docker_config(path: Path, host: str, word: str = PASSWORD) -> Path:
    """Write a docker config file, as `kubectl create secret docker-registry` puts it into a Secret."""
    auth = base64.b64encode(f"{USER}:{word}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return path


def certificate(folder: Path, name: str = "tls") -> tuple[Path, Path]:
    """Make a self-signed certificate for loopback; return certificate and key."""
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run([*command, "-out", crt, "-keyout", key], check=True, capture_output=True)
    return crt, key


def tls(folder: Path) -> tuple[dict[str, Any], Path]:
    """Return the configuration of a registry with TLS, and the file of its authority."""
    crt, key = certificate(folder)
    return {"http": {"tls": {"certificate": str(crt), "key": str(key)}}}, crt


@contextlib.contextmanager
def token_service(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run a token service (distribution, "Token Authentication"); yield its host:port and the registry's config."""
    crt, key_file = certificate(folder, "issuer")
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    chain = "".join(crt.read_text().split("-----")[2].split())
    right = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Service(Quiet):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            access = [
                {"type": kind, "name": name, "actions": actions.split(",")}
                for kind, name, actions in (one.split(":") for scope in asked.get("scope", []) for one in scope.split())
            ]
            if self.headers.get("Authorization") != right:
                self.answer(401, b"{}")
            else:
                self.answer(200, json.dumps({"token": _token(key, chain, access)}).encode())

    with serving(Service) as host:
        token = {
            "realm": f"http://{host}/token", "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(crt),
        }  # fmt: skip
        yield host, {"auth": {"token": token}}


def _token(key: ec.EllipticCurvePrivateKey, chain: str, access: list[Any]) -> str:
    """Return a JSON web token (RFC 7515, 7518: ES256)."""
    now = int(time.time())
    claims = {
        "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": str(now), "access": access,
        "iat": now, "nbf": now - 10, "exp": now + 60,
    }  # fmt: skip
    parts = [_base64url(json.dumps(one).encode()) for one in ({"typ": "JWT", "alg": "ES256", "x5c": [chain]}, claims)]
    r, s = decode_dss_signature(key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256())))
    return ".".join([*parts, _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Quiet(BaseHTTPRequestHandler):
    """A server that a test writes itself: one that lies, as no real registry does."""

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's name
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def serving(handler: type[Quiet]) -> Iterator[str]:
    """Serve on loopback until the block ends; yield host:port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
