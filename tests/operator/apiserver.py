"""A real kube-apiserver and etcd on loopback, without nodes: enough for everything the operator does."""

import contextlib
import functools
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

GROUP = "/apis/podgraft.dev/v1alpha1"
Json = dict[str, Any]


def kube_binary() -> Path:
    """Return the cached binary that is kube-apiserver by its argv[0] (hack/cluster builds it)."""
    if "PODGRAFT_KUBE" in os.environ:
        return Path(os.environ["PODGRAFT_KUBE"])
    cache = Path(os.environ.get("PODGRAFT_CACHE", Path.home() / ".cache/podgraft"))
    found = sorted(path for path in cache.rglob("kube*") if path.is_file() and os.access(path, os.X_OK))
    whole = [path for path in found if path.stat().st_size > 50 * 2**20]
    if not whole:
        pytest.skip(f"no kube binary under {cache}; `make cluster-up` builds one, PODGRAFT_KUBE names another")
    return whole[-1]


class Refused(Exception):
    """The API server said no."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(f"{status} {body.get('reason')}: {body.get('message')}")
        self.status, self.message = status, str(body.get("message"))


@functools.cache
def trust(ca: str) -> ssl.SSLContext:
    """Return a context for a CA file; loading one takes longer than a request."""
    return ssl.create_default_context(cafile=ca)


@dataclass(frozen=True)
class Api:
    """Requests with one token; raises Refused."""

    url: str
    ca: str
    token: str
    # Where its etcd answers.
    store: str = ""

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json", **more: str) -> Json:
        """Send one request, with `more` headers, return the JSON answer."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310 - https, ours
        try:
            with urllib.request.urlopen(  # noqa: S310 - the same
                request, timeout=20, context=trust(self.ca)
            ) as answer:
                said: Json = json.loads(answer.read())
                return said
        except urllib.error.HTTPError as error:
            text = error.read()
            # A path that nobody serves is answered by plain text.
            raise Refused(error.code, json.loads(text) if text.startswith(b"{") else {"message": text}) from error

    def get(self, path: str) -> Json:
        return self.call("GET", path)

    def create(self, path: str, body: Any) -> Json:
        return self.call("POST", path, body)

    def patch(self, path: str, body: Any) -> Json:
        return self.call("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> Json:
        return self.call("DELETE", path)

    def exists(self, path: str) -> bool:
        try:
            self.get(path)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this token."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority": self.ca}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(config), "utf-8")
        return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: str | int) -> bool:
    """Return whether something answers on a port of this machine."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", int(port))) == 0


@contextlib.contextmanager
def running(command: list[str | Path], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program and end it by its pid."""
    with log.open("ab") as out, subprocess.Popen(command, stdout=out, stderr=out, **options) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def api_server(folder: Path) -> Iterator[Api]:
    """Run etcd and kube-apiserver in a folder until the block ends."""
    binary = folder / "kube-apiserver"
    binary.symlink_to(kube_binary())
    etcd_client, etcd_peer, port = free_port(), free_port(), free_port()
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f'{token},admin,admin,"system:masters"\n', "utf-8")
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    store = f"http://127.0.0.1:{etcd_client}"
    etcd: list[str | Path] = ["etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync"]
    etcd += ["--listen-client-urls", store, "--advertise-client-urls", store]
    etcd += ["--listen-peer-urls", f"http://127.0.0.1:{etcd_peer}"]
    server: list[str | Path] = [binary, f"--etcd-servers={store}", "--bind-address=127.0.0.1"]
    server += [f"--secure-port={port}", f"--cert-dir={folder}/certs", "--authorization-mode=RBAC"]
    server += [f"--token-auth-file={folder}/tokens.csv", "--allow-privileged=true"]
    # Pods are objects only, and no controller makes default service accounts.
    server += ["--disable-admission-plugins=ServiceAccount", "--service-cluster-ip-range=198.19.0.0/24"]
    server += ["--service-account-issuer=https://kubernetes.default.svc"]
    server += [f"--service-account-{use}-file={folder}/sa.key" for use in ("key", "signing-key")]
    with running(etcd, folder / "etcd.log"), running(server, folder / "apiserver.log") as process:
        api = Api(f"https://127.0.0.1:{port}", str(folder / "certs/apiserver.crt"), token, store)
        deadline = time.monotonic() + 90
        while not ready(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((folder / "apiserver.log").read_text("utf-8")[-3000:])
            time.sleep(0.3)
        yield api


def ready(api: Api) -> bool:
    """Return whether the server answers and its own start-up hooks are done."""
    try:
        api.get("/api/v1/namespaces/default")
        return api.exists("/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin")
    except (OSError, Refused):
        return False
