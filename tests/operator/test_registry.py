"""Bundles to a real registry and back, and what a registry that lies can achieve: nothing."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from registries import Quiet, docker_config, password, real_registry, serving, sha256, tls, token_service
from stage import KEY, STRANGER, Cluster, make_graft, wait, write_trust
from typer.testing import CliRunner

from hack.tools import cache
from podgraft_bundle import registry
from podgraft_bundle.bundle import MAX_BUNDLE
from podgraft_bundle.errors import PodgraftError, Reason
from podgraft_bundle.registry import MEDIA_TYPE, Access, pull, push
from podgraft_bundle.trust import key_id
from podgraft_cli.main import app

GRAFT = make_graft()
NOWHERE = "sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The credentials of whoever runs the tests are none of ours."""
    monkeypatch.setenv("PODGRAFT_CACHE", str(cache()))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry without password and TLS."""
    with real_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


def refused(work: Callable[[], Any]) -> Reason:
    with pytest.raises(PodgraftError) as caught:
        work()
    return caught.value.reason


def test_there_and_back(host: str) -> None:
    """What is pushed comes back to the byte; the same bundle has the same digest, with and without a tag."""
    plain, tagged = push(GRAFT, f"{host}/team/redis", Access()), push(GRAFT, f"{host}/team/redis:1.2", Access())
    assert plain.digest == tagged.digest
    assert pull(str(plain), Access()) == GRAFT
    large = make_graft("large") + bytes(1)  # the registry stores bytes; what is no bundle is found out when decoded
    assert pull(str(push(large, f"{host}/other", Access())), Access()) == large


def test_commands(host: str, tmp_path: Path) -> None:
    """Push prints the reference, pull needs a digest, and writes nothing that a named key has not signed."""
    graft, out = tmp_path / "fix.graft", tmp_path / "out.graft"
    graft.write_bytes(GRAFT)
    keys = {}
    for name, key in (("ours", KEY), ("theirs", STRANGER)):
        (tmp_path / name).mkdir()
        keys[name] = str(write_trust(tmp_path / name, key) / "key-0.pem")

    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in words])
        error = done.exception
        return (int(error.exit_code), str(error.reason)) if isinstance(error, PodgraftError) else (0, done.output)

    code, reference = run("push", graft, f"{host}/cli")
    assert code == 0
    assert run("pull", f"{host}/cli:latest", "-o", out) == (3, "RegistryNotAllowed")
    assert run("pull", reference.strip(), "-o", out, "--trusted-key", keys["theirs"]) == (3, "UntrustedSignature")
    assert not out.exists()
    assert run("pull", reference.strip(), "-o", out, "--trusted-key", keys["ours"])[0] == 0
    assert out.read_bytes() == GRAFT
    assert run("pull", f"{host}/cli@{NOWHERE}", "-o", out) == (3, "RegistryRefused")


def test_password(tmp_path: Path) -> None:
    """A registry that asks for a password gets that of the docker config file, and no other registry does."""
    with real_registry(tmp_path, **password(tmp_path)) as host:
        good = Access(credentials=(docker_config(tmp_path / "good.json", host),))
        wrong = Access(credentials=(docker_config(tmp_path / "wrong.json", host, "wrong"),))
        other = Access(credentials=(docker_config(tmp_path / "other.json", "127.0.0.1:1"),))
        pushed = str(push(GRAFT, f"{host}/x", good))
        assert pull(pushed, good) == GRAFT
        for access in (Access(), wrong, other):
            assert refused(lambda access=access: pull(pushed, access)) is Reason.REGISTRY_REFUSED  # type: ignore[misc]
            assert refused(lambda access=access: push(GRAFT, f"{host}/y", access)) is Reason.REGISTRY_REFUSED  # type: ignore[misc]


def test_tokens(tmp_path: Path) -> None:
    """A registry with a token service is served; one whose token service has no TLS only where that is named."""
    with token_service(tmp_path) as (service, config), real_registry(tmp_path, **config) as host:
        credentials = (docker_config(tmp_path / "good.json", host),)
        access = Access(credentials=credentials, plain_http=(service,))
        pushed = str(push(GRAFT, f"{host}/x", access))
        assert pull(pushed, access) == GRAFT
        assert refused(lambda: pull(pushed, Access(credentials=credentials))) is Reason.REGISTRY_NOT_ALLOWED
        assert refused(lambda: pull(pushed, Access(plain_http=(service,)))) is Reason.REGISTRY_REFUSED


def test_tls(tmp_path: Path) -> None:
    """A certificate of an authority that was named is accepted, that of an unknown one is not."""
    config, authority = tls(tmp_path)
    (tmp_path / "else").mkdir()
    _, other = tls(tmp_path / "else")
    with real_registry(tmp_path, **config) as host:
        pushed = str(push(GRAFT, f"{host}/x", Access(ca=authority)))
        assert pull(pushed, Access(ca=authority)) == GRAFT
        for access in (Access(ca=other), Access(ca=tmp_path / "missing")):
            assert refused(lambda access=access: pull(pushed, access)) is Reason.REGISTRY_UNREACHABLE  # type: ignore[misc]


def test_nobody_listens() -> None:
    """No answer is no refusal: it is worth another try."""
    assert refused(lambda: pull(f"127.0.0.1:1/x@{NOWHERE}", Access())) is Reason.REGISTRY_UNREACHABLE


@pytest.mark.parametrize(
    ("reference", "allow", "reason"),
    [
        ("registry.example/team/x", ("registry.example/team",), None),
        ("registry.example/team", ("registry.example/team",), None),
        ("registry.example/teams/x", ("registry.example/team",), Reason.REGISTRY_NOT_ALLOWED),
        ("registry.example.evil.example/team/x", ("registry.example",), Reason.REGISTRY_NOT_ALLOWED),
        ("user@registry.example/x", (), Reason.REGISTRY_NOT_ALLOWED),
        ("registry/x", (), Reason.REGISTRY_NOT_ALLOWED),
        ("registry.example/../x", (), Reason.REGISTRY_NOT_ALLOWED),
        ("registry.example/x?y", (), Reason.REGISTRY_NOT_ALLOWED),
        ("https://registry.example/x", (), Reason.REGISTRY_NOT_ALLOWED),
    ],
)
def test_references(reference: str, allow: tuple[str, ...], reason: Reason | None) -> None:
    """Only what is plainly a reference, to a registry that is allowed, leads to a request."""

    def ask() -> None:
        registry.permitted(f"{reference}@{NOWHERE}", Access(allow=allow))

    if reason is None:
        ask()
    else:
        assert refused(ask) is reason


@contextmanager
def liar(manifest: bytes, blob: Callable[[Quiet], None]) -> Iterator[str]:
    """A registry that answers every manifest with this one, and blobs as `blob` does; yields the reference."""

    class Lies(Quiet):
        def do_GET(self) -> None:  # noqa: N802 - the library's name
            if "/manifests/" in self.path:
                self.answer(200, manifest)
            else:
                blob(self)

    with serving(Lies) as one:
        yield f"{one}/x@{sha256(manifest)}"


def manifest_of(data: bytes, **changes: Any) -> bytes:
    layer = {"mediaType": MEDIA_TYPE, "digest": sha256(data), "size": len(data)} | changes
    return json.dumps({"schemaVersion": 2, "config": layer, "layers": [layer]}).encode()


def test_another_manifest_is_refused() -> None:
    """The digest that was asked for is computed here, whatever the registry calls its answer."""
    with liar(manifest_of(GRAFT), lambda one: one.answer(200, GRAFT)) as reference:
        assert pull(reference, Access()) == GRAFT
        other = reference.split("@")[0] + "@" + NOWHERE
        assert refused(lambda: pull(other, Access())) is Reason.BUNDLE_CORRUPT


def endless(one: Quiet) -> None:
    one.send_response(200)
    one.end_headers()
    try:
        for _ in range(MAX_BUNDLE // 2**20 + 8):
            one.wfile.write(bytes(2**20))
    except OSError:
        pass  # the client has had enough, as it should


def dripping(one: Quiet) -> None:
    one.send_response(200)
    one.end_headers()
    try:
        for _ in range(100):
            one.wfile.write(b"x")
            time.sleep(0.1)
    except OSError:
        pass  # the client has had enough, as it should


def away(one: Quiet) -> None:
    one.answer(307, b"", Location="http://localhost:1/blob?secret=42")


BOMB = b"[" * 60_000


@pytest.mark.parametrize(
    ("manifest", "blob", "reason"),
    [
        (manifest_of(GRAFT), lambda one: one.answer(200, GRAFT[:-1] + b"x"), Reason.BUNDLE_CORRUPT),
        (manifest_of(GRAFT), endless, Reason.BUNDLE_TOO_LARGE),
        (manifest_of(GRAFT), dripping, Reason.REGISTRY_UNREACHABLE),
        (manifest_of(GRAFT), away, Reason.REGISTRY_NOT_ALLOWED),
        (manifest_of(GRAFT), lambda one: one.answer(500, b""), Reason.REGISTRY_UNREACHABLE),
        (manifest_of(GRAFT, size=MAX_BUNDLE + 1), endless, Reason.BUNDLE_TOO_LARGE),
        (manifest_of(GRAFT, mediaType="application/x"), endless, Reason.NOT_A_BUNDLE),
        (manifest_of(GRAFT, digest="sha512:abc"), endless, Reason.NOT_A_BUNDLE),
        (manifest_of(GRAFT, digest="../../../secret"), endless, Reason.NOT_A_BUNDLE),
        (manifest_of(GRAFT).replace(b'"layers": [', b'"layers": [{"mediaType": "x"}, '), endless, Reason.NOT_A_BUNDLE),
        (b"{}", endless, Reason.NOT_A_BUNDLE),
        (BOMB, endless, Reason.NOT_A_BUNDLE),
        (b"no json", endless, Reason.NOT_A_BUNDLE),
        (bytes(70_000), endless, Reason.BUNDLE_TOO_LARGE),
    ],
)
def test_a_registry_that_lies(manifest: bytes, blob: Callable[[Quiet], None], reason: Reason) -> None:
    """Another content, too much of it, too slow, from elsewhere without TLS, or of another kind: refused."""
    with liar(manifest, blob) as reference:
        began = time.monotonic()
        assert refused(lambda: pull(reference, Access(seconds=2))) is reason
        assert time.monotonic() - began < 8


def test_secrets_of_a_redirect_are_not_told() -> None:
    """The address that a registry redirects to may hold a signature; it does not get into a message."""
    with liar(manifest_of(GRAFT), away) as reference, pytest.raises(PodgraftError) as caught:
        pull(reference, Access(plain_http=("localhost:1",)))
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert "42" not in caught.value.detail + caught.value.hint


@pytest.mark.usefixtures("operator")
def test_operator_pulls(cluster: Cluster, host: str) -> None:
    """A LivePatch with spec.bundle.oci is rolled out; a second one is served from what is there."""
    pushed = push(GRAFT, f"{host}/team/redis", Access())
    cluster.add_pod("redis-0", 0)
    cluster.apply(bundle={"oci": str(pushed)})
    item = cluster.wait_items(0)[0]
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    status = cluster.live_patch()["status"]["bundle"]
    assert (status["digest"], status["signedBy"]) == (item["bundle"]["digest"], [key_id(KEY.public_key())])


@pytest.mark.usefixtures("operator")
def test_operator_tells_what_a_registry_did(cluster: Cluster, host: str) -> None:
    """What is not there, not signed, or not a bundle is a condition; nothing is given to a node."""
    unsigned = push(make_graft(keys=()), f"{host}/unsigned", Access())
    cluster.add_pod("redis-0", 0)
    for name, reference, reason in (
        ("missing", f"{host}/x@{NOWHERE}", Reason.REGISTRY_REFUSED),
        ("unsigned", str(unsigned), Reason.UNSIGNED_BUNDLE),
        ("nobody", f"127.0.0.1:1/x@{NOWHERE}", Reason.REGISTRY_UNREACHABLE),
    ):
        cluster.apply(name, bundle={"oci": reference})
        cluster.wait_condition("Stalled", reason, name)
    assert cluster.items(0) == []


@pytest.mark.usefixtures("operator")
def test_a_slow_registry_delays_nobody_else(cluster: Cluster) -> None:
    """While one bundle drips in, another LivePatch is rolled out; the slow one says what it waits for."""
    cluster.add_pod("redis-0", 0)
    cluster.add_config_map(GRAFT)
    with liar(manifest_of(GRAFT), dripping) as reference:
        cluster.apply("slow", bundle={"oci": reference})
        cluster.wait_condition("Reconciling", "PullingBundle", "slow")
        cluster.apply()
        cluster.wait_items(0)
        assert cluster.conditions("slow")["Reconciling"]["reason"] == "PullingBundle"
        wait(lambda: cluster.conditions("slow")["Stalled"]["reason"] == Reason.BUNDLE_CORRUPT, "it ends at last", 30)
