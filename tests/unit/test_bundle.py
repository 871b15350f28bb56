"""A bundle is read as it was written, or refused with one reason."""

import hashlib
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podgraft_bundle import schema
from podgraft_bundle.bundle import (
    MAX_BUNDLE,
    Bundle,
    canonical_manifest,
    decode,
    encode,
    make_bundle,
    read_bundle,
    write_bundle,
)
from podgraft_bundle.errors import Reason, Refusal
from podgraft_bundle.manifest import Manifest, Module, ObjectFile, Range, ReplacedFunction

ALLOWED = {
    Reason.BUNDLE_TRUNCATED,
    Reason.BUNDLE_CORRUPT,
    Reason.BUNDLE_TOO_LARGE,
    Reason.BUNDLE_UNSAFE_PATH,
    Reason.BUNDLE_UNKNOWN_VERSION,
    Reason.BUNDLE_MALFORMED,
    Reason.WRONG_ARCHITECTURE,
}


def elf_header(kind: int = 1, machine: int = 62) -> bytes:
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HH", kind, machine).ljust(48, b"\0")


def manifest_for(data: bytes) -> Manifest:
    entry = Range(symbol="f", offset=0x1000, size=16, sha256="0" * 64)
    return Manifest(
        name="demo",
        cves=["CVE-2025-32023"],
        module=Module(name="redis-server", build_id="ab" * 20),
        functions=[ReplacedFunction(entry=entry, new_symbol="f")],
        object=ObjectFile(size=len(data), sha256=hashlib.sha256(data).hexdigest()),
    )


def sample() -> Bundle:
    data = elf_header() + b"code" * 300
    return make_bundle(manifest_for(data), data)


def raw_tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def with_manifest(text: bytes, extra: list[tuple[tarfile.TarInfo, bytes]] | None = None) -> bytes:
    digest = hashlib.sha256(text).hexdigest().encode()
    return raw_tar(
        [
            (tarfile.TarInfo("digest"), digest),
            (tarfile.TarInfo("manifest.json"), text),
            (tarfile.TarInfo("patch.o"), sample().object),
            *(extra or []),
        ]
    )


def test_round_trip(tmp_path: Path) -> None:
    """What is written is read back equal, and the same bundle gives the same bytes."""
    bundle = sample()
    path = tmp_path / "demo.graft"
    assert write_bundle(bundle.manifest, bundle.object, path) == bundle
    assert read_bundle(path) == bundle
    assert path.read_bytes() == encode(bundle)
    text = canonical_manifest(bundle.manifest)
    assert bundle.digest == "sha256:" + hashlib.sha256(text).hexdigest()


SAMPLE = encode(sample())


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_flipped_byte_is_refused(position: int, change: int) -> None:
    """Any changed byte is refused with a bundle reason, never read and never another exception."""
    data = bytearray(SAMPLE)
    data[position] ^= change
    with pytest.raises(Refusal) as caught:
        decode(bytes(data))
    assert caught.value.reason in ALLOWED


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(SAMPLE) - 1))
def test_truncated_anywhere_is_refused(length: int) -> None:
    """A file cut at any byte is refused as truncated or corrupt."""
    with pytest.raises(Refusal) as caught:
        decode(SAMPLE[:length])
    assert caught.value.reason in {Reason.BUNDLE_TRUNCATED, Reason.BUNDLE_CORRUPT}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no bundle at all are refused with a bundle reason."""
    with pytest.raises(Refusal) as caught:
        decode(data)
    assert caught.value.reason in ALLOWED


def test_cut_in_the_middle_reads_as_truncated() -> None:
    """The usual half-copied file is named as such."""
    with pytest.raises(Refusal) as caught:
        decode(SAMPLE[: len(SAMPLE) // 2])
    assert caught.value.reason is Reason.BUNDLE_TRUNCATED


def test_another_file_is_no_truncated_bundle() -> None:
    """A file that never was a bundle is not called half a bundle."""
    with pytest.raises(Refusal) as caught:
        decode(b"root:x:0:0:root\n" * 100)
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


def test_flipped_padding_is_corrupt() -> None:
    """A byte that no member owns counts, too."""
    data = bytearray(SAMPLE)
    data[-1] ^= 1
    with pytest.raises(Refusal) as caught:
        decode(bytes(data))
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


def changed(find: bytes, put: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        text = canonical_manifest(sample().manifest)
        assert find in text
        return with_manifest(text.replace(find, put))

    return make


def link(name: str, kind: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = "/etc/passwd"
        return raw_tar([(info, b"")])

    return make


def extra(name: str) -> Callable[[], bytes]:
    return lambda: with_manifest(canonical_manifest(sample().manifest), [(tarfile.TarInfo(name), b"x")])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (changed(b'"format_version":1', b'"format_version":3'), Reason.BUNDLE_UNKNOWN_VERSION),
        (changed(b'"format_version":1', b'"format_version":3,"new":1'), Reason.BUNDLE_UNKNOWN_VERSION),
        (changed(b'"format_version":1', b'"format_version":2'), Reason.BUNDLE_MALFORMED),
        (changed(b'"x86_64"', b'"aarch64"'), Reason.WRONG_ARCHITECTURE),
        (changed(b'"name":"demo"', b'"name":"Not a name"'), Reason.BUNDLE_MALFORMED),
        (changed(b'"name":"demo"', b'"name":"demo","surprise":1'), Reason.BUNDLE_MALFORMED),
        (changed(b'"name":"demo"', b'"name": "demo"'), Reason.BUNDLE_CORRUPT),
        (changed(b'{"arch"', b'["arch"'), Reason.BUNDLE_MALFORMED),
        (link("patch.o", tarfile.SYMTYPE), Reason.BUNDLE_UNSAFE_PATH),
        (link("patch.o", tarfile.LNKTYPE), Reason.BUNDLE_UNSAFE_PATH),
        (link("digest", tarfile.FIFOTYPE), Reason.BUNDLE_UNSAFE_PATH),
        (extra("../evil"), Reason.BUNDLE_UNSAFE_PATH),
        (extra("/etc/evil"), Reason.BUNDLE_UNSAFE_PATH),
        (extra("patch.o"), Reason.BUNDLE_UNSAFE_PATH),
        (extra("more"), Reason.BUNDLE_UNSAFE_PATH),
        (lambda: bytes(MAX_BUNDLE + 1), Reason.BUNDLE_TOO_LARGE),
        (lambda: raw_tar([(tarfile.TarInfo("digest"), bytes(65))]), Reason.BUNDLE_TOO_LARGE),
    ],
)
def test_bad_content_has_its_own_reason(make: Callable[[], bytes], reason: Reason) -> None:
    """Each kind of bad content is told apart."""
    with pytest.raises(Refusal) as caught:
        decode(make())
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elf_header(machine=183), Reason.WRONG_ARCHITECTURE),
        (elf_header(kind=3), Reason.BUNDLE_MALFORMED),
        (b"#!/bin/sh\n" * 10, Reason.BUNDLE_MALFORMED),
    ],
)
def test_object_must_be_a_relocatable(data: bytes, reason: Reason) -> None:
    """patch.o is an x86-64 ELF relocatable or the bundle is refused."""
    with pytest.raises(Refusal) as caught:
        make_bundle(manifest_for(data), data)
    assert caught.value.reason is reason


def test_object_of_another_build_is_corrupt() -> None:
    """An object that the manifest does not name is refused."""
    bundle = sample()
    with pytest.raises(Refusal) as caught:
        decode(encode(Bundle(bundle.manifest, bundle.object + b"x", bundle.digest)))
    assert caught.value.reason is Reason.BUNDLE_CORRUPT


def test_schema_is_current() -> None:
    """The committed JSON schema is the one that the model makes."""
    assert schema.PATH.read_text() == schema.manifest_schema()
