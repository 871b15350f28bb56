"""Programs that are awkward, and processes that lie about what is in them."""

import json
import struct
import time
import zlib
from pathlib import Path

import forge
import pytest
from conftest import TARGETS, Target, engine, run_target

from podgraft_engine.helper import block
from podgraft_engine.patched import state as state_module
from podgraft_engine.target.memory import Memory
from podgraft_engine.target.proc import Process

NAME = "pairs-2"


def test_threads_that_sleep_for_ever_migrate_there_and_back(built: Path, bundle: str) -> None:
    """A look turns their poll into restart_syscall; the second look must know that."""
    for target in run_target(built / "pairs", "0", "1", "3"):
        for _ in range(2):
            assert engine(target.pid, op="apply", bundle=bundle).code == 0
            assert engine(target.pid, op="revert", name=NAME).code == 0


def test_a_main_thread_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    """The zombie leader stays in the listing until the process ends."""
    program = forge.compile_program(TARGETS / "headless.c", tmp_path / "headless")
    patch = forge.compile_object(TARGETS / "headless_patch.c", tmp_path / "patch.o")
    forge.forge(program, patch, ["left"], tmp_path / "headless.graft", name="headless")
    for target in run_target(program):
        time.sleep(0.05)
        assert target.ask("x") == "1"
        applied = engine(target.pid, op="apply", bundle=str(tmp_path / "headless.graft"))
        assert applied.code == 0, applied
        assert target.ask("x") == "2"
        assert engine(target.pid, op="revert", name="headless").code == 0
        assert target.ask("x") == "1"


@pytest.fixture
def borrowed(tmp_path: Path) -> Path:
    """A program, and beside it a bundle."""
    program = forge.compile_program(TARGETS / "borrowed.c", tmp_path / "borrowed")
    patch = forge.compile_object(TARGETS / "headless_patch.c", tmp_path / "patch.o")
    forge.forge(program, patch, ["left"], tmp_path / "borrowed.graft", name="borrowed")
    return program


def test_a_stack_in_a_large_mapping(borrowed: Path) -> None:
    """Where the stack of a thread that sleeps ends is not where its mapping does."""
    for target in run_target(borrowed):
        applied = engine(target.pid, op="apply", bundle=f"{borrowed}.graft", deadline=5)
        assert applied.code == 0, applied
        assert target.ask("x") == "2"
        assert engine(target.pid, op="revert", name="borrowed", deadline=5).code == 0


def test_a_child_that_a_thread_has_forked(borrowed: Path) -> None:
    """The first and only thread of the child is on the stack of the thread that forked."""
    for target in run_target(borrowed):
        child = int(target.ask("fork"))
        applied = engine(child, op="apply", bundle=f"{borrowed}.graft", deadline=5)
        assert applied.code == 0, applied


def test_a_handler_on_an_alternate_stack_hides_no_frame(target: Target, bundle: str) -> None:
    """The interrupted call of a replaced function lies outside of what the handler's stack pointer shows."""
    tid = int(target.ask("tid"))
    target.ask("linger")
    target.ask("handle")
    first = engine(target.pid, op="apply", bundle=bundle, deadline=2)
    assert first.code == 4, first
    assert tid not in {e["tid"] for e in first.of("migrated")}
    target.ask("leave")
    assert engine(target.pid, op="apply", bundle=bundle, deadline=30).code == 0
    assert target.report()["changes"] == 1


def test_names_that_are_no_text_are_no_obstacle(target: Target, bundle: str) -> None:
    """A thread name that is cut in the middle of a character."""
    target.ask("name")
    applied = engine(target.pid, op="apply", bundle=bundle)
    assert applied.code == 0, applied


def test_memory_of_the_program_is_never_taken_for_our_state(target: Target, bundle: str) -> None:
    """The root points to where the program has mapped something since: a new place is found."""
    process = Process(target.pid)
    memory = Memory(process)
    heap = next(m for m in process.maps() if m.path == "[heap]")
    block.place(process, memory).set_root(heap.start, state_module.MAPPING_SIZE)
    before = memory.read(heap.start, 4096)
    applied = engine(target.pid, op="apply", bundle=bundle)
    assert applied.code == 0, applied
    assert memory.read(heap.start, 4096) == before


@pytest.mark.parametrize(
    "body",
    [
        b"{}x",
        b'{"generation": -1, "patches": [], "pages": [], "intent": null}',
        b'{"generation": 1, "patches": [], "pages": [{"live": 1e99, "pristine": 0}], "intent": null}',
        b'{"generation": 1, "patches": [{"name": "x"}], "pages": [], "intent": null}',
    ],
)
def test_a_forged_state_is_a_clear_error(target: Target, bundle: str, body: bytes) -> None:
    """Whoever owns the process can write there; the engine must neither loop nor believe it."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    assert engine(target.pid, op="revert", name=NAME).code == 0
    process = Process(target.pid)
    memory = Memory(process)
    root = block.find(process, memory).root()
    assert root is not None
    sequence = struct.unpack("<Q", memory.read(root[0] + 0x20, 8))[0]
    copy = root[0] + 4096 + (sequence & 1) * state_module.COPY_SIZE
    memory.write(copy, struct.pack("<QII", sequence, len(body), zlib.crc32(body)) + body)
    answer = engine(target.pid, op="apply", bundle=bundle)
    assert answer.last["reason"] == "ForeignState", answer
    assert target.report()["wrong"] == 0


def test_a_state_of_another_version_is_a_clear_error(target: Target, bundle: str) -> None:
    """As of an older engine that patched this process: it is not even read."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    process = Process(target.pid)
    memory = Memory(process)
    root = block.find(process, memory).root()
    assert root is not None
    version = struct.unpack("<Q", memory.read(root[0] + 8, 8))[0]
    memory.write(root[0] + 8, struct.pack("<Q", version - 1))
    for request in ({"op": "apply", "bundle": bundle}, {"op": "revert", "name": NAME}, {"op": "status"}):
        answer = engine(target.pid, **request)
        assert answer.last["reason"] == "ForeignState", answer
        assert f"version {version - 1}" in answer.last["detail"]
    memory.write(root[0] + 8, struct.pack("<Q", version))
    assert engine(target.pid, op="revert", name=NAME).code == 0


def test_the_form_of_the_state_belongs_to_its_version() -> None:
    """Whoever changes the form raises the version, and then the number here."""
    schema = state_module.Document.model_json_schema()
    parts = {name: part["properties"] for name, part in schema["$defs"].items() if "properties" in part}
    form = zlib.crc32(json.dumps([schema["properties"], parts], sort_keys=True).encode())
    assert (state_module.VERSION, form) == (2, 0x28ECA026)


def test_a_damaged_root_is_a_clear_error(target: Target, bundle: str) -> None:
    """The root has a check word."""
    process = Process(target.pid)
    memory = Memory(process)
    blk = block.place(process, memory)
    memory.write(blk.address + block.SLOTS.size - 24, struct.pack("<Q", 0x1234000))
    answer = engine(target.pid, op="apply", bundle=bundle)
    assert answer.last["reason"] == "ForeignState", answer


def test_a_file_that_claims_endless_notes_costs_nothing(tmp_path: Path) -> None:
    """A sparse ELF file whose note segment says 1 TiB; the build id is looked for in its first bytes only."""
    from podgraft_bundle.buildid import read_build_id

    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, 2**40, 2**40, 4)
    file = tmp_path / "bomb"
    file.write_bytes(header + note + bytes(4096))
    with file.open("rb+") as stream:
        stream.truncate(2**40 + 120)
        began = time.monotonic()
        assert read_build_id(stream) is None
    assert time.monotonic() - began < 5
