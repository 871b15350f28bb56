"""Keys and signatures: who is trusted is let in, everything else is refused with its own reason."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from podgraft_bundle.bundle import Bundle, decode, encode, read_bundle, save_bundle
from podgraft_bundle.errors import PodgraftError, Reason, Refusal
from podgraft_bundle.signatures import MAX_SIGNATURES, Signature
from podgraft_bundle.trust import (
    Trust,
    key_id,
    read_private_key,
    read_public_key,
    read_trust,
    sign,
    write_key_pair,
)
from podgraft_cli.main import app

sys.path.insert(0, str(Path(__file__).parent))
from test_bundle import ALLOWED, raw_tar, sample

OURS, THEIRS = Ed25519PrivateKey.from_private_bytes(b"o" * 32), Ed25519PrivateKey.from_private_bytes(b"t" * 32)
TRUST = Trust((OURS.public_key(),))
LAX = replace(TRUST, allow_unsigned=True)
SIGNED = sign(sample(), OURS)
SIGNED_BYTES = encode(SIGNED)


def other_bundle() -> Bundle:
    other = sample().manifest.model_copy(update={"name": "other"})
    return Bundle(other, sample().object, "sha256:" + "1" * 64)


def forged() -> Bundle:
    """A bundle with a signature that the trusted key made for another one."""
    return replace(sample(), signatures=sign(other_bundle(), OURS).signatures)


def test_signed_round_trip() -> None:
    """A signature is read back as written, changes no digest, and signing twice gives the same bytes."""
    assert decode(SIGNED_BYTES) == SIGNED
    assert SIGNED.digest == sample().digest
    assert encode(sign(SIGNED, OURS)) == SIGNED_BYTES
    assert TRUST.check(SIGNED) == (key_id(OURS.public_key()),)


def test_order_of_signing_leaves_no_trace() -> None:
    """Two signers give one file, whoever was first; each of them is enough."""
    both = sign(SIGNED, THEIRS)
    assert encode(both) == encode(sign(sign(sample(), THEIRS), OURS))
    assert TRUST.check(both) == (key_id(OURS.public_key()),)
    assert Trust((THEIRS.public_key(),)).check(both) == (key_id(THEIRS.public_key()),)


@pytest.mark.parametrize(
    ("trust", "bundle", "reason"),
    [
        (TRUST, sample(), Reason.UNSIGNED_BUNDLE),
        (Trust(), sample(), Reason.UNSIGNED_BUNDLE),
        (Trust(), SIGNED, Reason.UNTRUSTED_SIGNATURE),
        (TRUST, sign(sample(), THEIRS), Reason.UNTRUSTED_SIGNATURE),
        (TRUST, forged(), Reason.BAD_SIGNATURE),
        (TRUST, sign(forged(), THEIRS), Reason.BAD_SIGNATURE),
        (Trust((OURS.public_key(), THEIRS.public_key())), sign(forged(), THEIRS), Reason.BAD_SIGNATURE),
        (LAX, forged(), Reason.BAD_SIGNATURE),
    ],
)
def test_refused_with_its_reason(trust: Trust, bundle: Bundle, reason: Reason) -> None:
    """Unsigned, signed by a stranger, and signed wrongly are told apart; a wrong one counts beside a right one."""
    with pytest.raises(Refusal) as caught:
        trust.check(bundle)
    assert caught.value.reason is reason


def test_unsigned_is_allowed_only_where_asked_for() -> None:
    """allow_unsigned lets in what nobody trusted has signed, and says that nobody has."""
    assert LAX.check(sample()) == ()
    assert LAX.check(sign(sample(), THEIRS)) == ()


def test_a_key_cannot_sign_under_another_name() -> None:
    """A stranger's signature with the id of a trusted key is a bad signature."""
    theirs = sign(sample(), THEIRS).signatures[0]
    renamed = theirs.model_copy(update={"key": key_id(OURS.public_key())})
    with pytest.raises(Refusal) as caught:
        TRUST.check(replace(sample(), signatures=(renamed,)))
    assert caught.value.reason is Reason.BAD_SIGNATURE


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SIGNED_BYTES) - 1), st.integers(1, 255))
def test_flipped_byte_never_passes(position: int, change: int) -> None:
    """Any changed byte of a signed file is refused, by its form or by the trust check."""
    data = bytearray(SIGNED_BYTES)
    data[position] ^= change
    with pytest.raises(Refusal) as caught:
        TRUST.check(decode(bytes(data)))
    assert caught.value.reason in {*ALLOWED, Reason.BAD_SIGNATURE, Reason.UNTRUSTED_SIGNATURE, Reason.UNSIGNED_BUNDLE}


def with_signatures(text: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(encode(sample()))) as tar:
        members = [(tarfile.TarInfo(one.name), tar.extractfile(one).read()) for one in tar]  # type: ignore[union-attr]
    return raw_tar([*members, (tarfile.TarInfo("signatures"), text)])


def document(**changes: Any) -> bytes:
    one = SIGNED.signatures[0].model_dump() | changes
    return json.dumps({"signatures": [one]}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def bits_without_meaning() -> str:
    """Base64 of the same 64 bytes with other bits behind the last."""
    text = SIGNED.signatures[0].ed25519
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:85] + digits[digits.index(text[85]) + 1] + "=="


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", Reason.BUNDLE_MALFORMED),
        (b"[]\n", Reason.BUNDLE_MALFORMED),
        (b'{"signatures":[]}\n', Reason.BUNDLE_MALFORMED),
        (document(more=1), Reason.BUNDLE_MALFORMED),
        (document(key="AB" * 32), Reason.BUNDLE_MALFORMED),
        (document(ed25519=bits_without_meaning()), Reason.BUNDLE_MALFORMED),
        (document().replace(b"[", b"[" + document()[15:-3] + b","), Reason.BUNDLE_MALFORMED),
        (document() + b" ", Reason.BUNDLE_CORRUPT),
        (b" " * 8193, Reason.BUNDLE_TOO_LARGE),
    ],
)
def test_bad_signature_member(text: bytes, reason: Reason) -> None:
    """The member has one form; another one is refused while reading."""
    with pytest.raises(Refusal) as caught:
        decode(with_signatures(text))
    assert caught.value.reason is reason


def test_most_signatures_fit_and_one_more_is_refused() -> None:
    """The limit of the reader is that of the signer."""
    bundle = sample()
    for number in range(MAX_SIGNATURES):
        bundle = sign(bundle, Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)))
    assert decode(encode(bundle)) == bundle
    with pytest.raises(Refusal):
        sign(bundle, OURS)


def test_key_files(tmp_path: Path) -> None:
    """A private key is for its owner alone; neither file is overwritten, not even through a link to nowhere."""
    secret, public = tmp_path / "k.key", tmp_path / "k.pub"
    name = write_key_pair(secret, public)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert key_id(read_private_key(secret).public_key()) == key_id(read_public_key(public)) == name
    before = secret.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for pair in ((secret, tmp_path / "new"), (tmp_path / "new", public), (tmp_path / "link", tmp_path / "new")):
        with pytest.raises(Refusal) as caught:
            write_key_pair(*pair)
        assert caught.value.reason is Reason.FILE_EXISTS
    assert secret.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["k.key", "k.pub", "link"]
    secret.chmod(0o640)
    with pytest.raises(Refusal, match="0640"):
        read_private_key(secret)


def test_openssl_reads_our_keys_and_we_read_its(tmp_path: Path) -> None:
    """Keys are plain PEM: another program makes them, checks them, and names them alike."""
    made = tmp_path / "made.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", made], check=True, capture_output=True)
    made.chmod(0o600)
    public = tmp_path / "made.pub"
    subprocess.run(["openssl", "pkey", "-in", made, "-pubout", "-out", public], check=True, capture_output=True)
    assert Trust((read_public_key(public),)).check(sign(sample(), read_private_key(made)))


@pytest.mark.parametrize("algorithm", ["RSA", "X25519"])
def test_other_keys_are_refused(tmp_path: Path, algorithm: str) -> None:
    """A key of another kind, a private key as a public one, and text are no trusted key."""
    made = tmp_path / "made.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", algorithm, "-out", made], check=True, capture_output=True)
    made.chmod(0o600)
    public = tmp_path / "made.pem"
    subprocess.run(["openssl", "pkey", "-in", made, "-pubout", "-out", public], check=True, capture_output=True)
    (tmp_path / "text").write_text("no key")
    for read, path in (
        (read_private_key, made), (read_public_key, public), (read_public_key, made),
        (read_public_key, tmp_path / "text"),
    ):  # fmt: skip
        with pytest.raises(Refusal) as caught:
            read(path)
        assert caught.value.reason is Reason.BAD_KEY
    with pytest.raises(Refusal):
        read_trust(tmp_path, allow_unsigned=True)


def run(*words: Any) -> tuple[int, str]:
    """Run a command as main() does, return exit code and output."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(done.exception, PodgraftError):
        return int(done.exception.exit_code), str(done.exception.reason)
    return done.exit_code, done.output


def test_commands(tmp_path: Path) -> None:
    """keygen, sign, inspect and verify: exit codes and what they say."""
    graft = tmp_path / "fix.graft"
    save_bundle(sample(), graft)
    key, stranger = tmp_path / "ours", tmp_path / "theirs"
    assert run("keygen", "-o", key)[0] == 0
    assert run("keygen", "-o", stranger)[0] == 0
    assert run("keygen", "-o", key) == (3, "FileExists")
    assert run("verify", graft)[0] == 2
    assert run("verify", graft, "--trusted-key", f"{key}.pub") == (3, "UnsignedBundle")
    assert "none" in run("inspect", graft)[1]
    assert run("sign", graft, "--key", f"{key}.key")[0] == 0
    name = key_id(read_public_key(Path(f"{key}.pub")))
    assert run("verify", graft, "--trusted-key", f"{key}.pub") == (
        0, f"verified {sample().digest}, signed by {name}\n"
    )  # fmt: skip
    assert run("verify", graft, "--trusted-key", f"{stranger}.pub") == (3, "UntrustedSignature")
    assert run("verify", graft, "--trusted-key", f"{stranger}.pub", "--trusted-key", f"{key}.pub")[0] == 0
    assert f"by key {name} (not checked" in run("inspect", graft)[1]
    assert json.loads(run("inspect", graft, "--json")[1])["signed_by"] == [name]
    assert read_bundle(graft).digest == sample().digest


def test_apply_touches_nothing_that_is_not_trusted(tmp_path: Path) -> None:
    """With --trusted-key the engine is not even started for a bundle of a stranger."""
    graft, key = tmp_path / "fix.graft", tmp_path / "ours"
    save_bundle(sign(sample(), THEIRS), graft)
    assert run("keygen", "-o", key)[0] == 0
    # A process that cannot be: the engine would say NoSuchProcess.
    assert run("apply", "--pid", 2**30, graft, "--trusted-key", f"{key}.pub") == (3, "UntrustedSignature")
    assert run("sign", graft, "--key", f"{key}.key")[0] == 0
    assert "NoSuchProcess" in run("apply", "--pid", 2**30, graft, "--trusted-key", f"{key}.pub", "--json")[1]


def test_signature_is_64_bytes() -> None:
    """What the model lets through is what ed25519 makes."""
    one = SIGNED.signatures[0]
    assert isinstance(one, Signature)
    assert len(one.value) == 64
