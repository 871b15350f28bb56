"""The short form of `make fuzz`, and what it has found."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.engine import forge
from tests.engine.conftest import PAIR_FUNCTIONS, TARGETS, run_target
from tests.torture.engines import run
from tests.torture.fuzz import SEED, encode_anew, fuzz, parts_of

CASES = 45


@pytest.mark.engine
def test_damaged_bundles_are_refused_and_the_process_stays_as_it_was(tmp_path: Path) -> None:
    """Every answer has a reason that is not our own error, and the text is the same before and after."""
    tally = fuzz(tmp_path, CASES, SEED)
    assert not tally.stories
    assert tally.cases == CASES
    assert tally.applied > 0
    assert len(tally.answers) > 5


def far_section_table(_: dict[str, Any], content: bytearray) -> None:
    """Say that the section headers lie behind the end of the file."""
    struct.pack_into("<Q", content, 0x28, len(content) + 4096)


def endless_section(_: dict[str, Any], content: bytearray) -> None:
    """Say that each section takes the whole address space."""
    table, size, count = struct.unpack_from("<Q", content, 0x28)[0], *struct.unpack_from("<2H", content, 0x3A)
    for index in range(1, count):
        struct.pack_into("<Q", content, table + index * size + 0x20, 2**62)


def twice(document: dict[str, Any], _: bytearray) -> None:
    """Replace one function two times."""
    document["functions"] *= 2


def lost_slot(document: dict[str, Any], _: bytearray) -> None:
    """Say that a GOT slot lies where nothing is mapped."""
    next(r for r in document["references"] if r["kind"] == "got")["offset"] = 2**40


@pytest.mark.engine
def test_objects_that_lie_are_malformed(tmp_path: Path) -> None:
    """Refused in the inspection, before anything is touched."""
    program = forge.compile_program(TARGETS / "pairs.c", tmp_path / "pairs")
    forge.compile_object(TARGETS / "pairs_patch.c", tmp_path / "patch.o")
    forge.forge(program, tmp_path / "patch.o", PAIR_FUNCTIONS, tmp_path / "good.graft")
    for target in run_target(program, "0", "1"):
        maps = target.maps()
        for damage in (far_section_table, endless_section, twice, lost_slot):
            document, content = parts_of((tmp_path / "good.graft").read_bytes())
            changed = bytearray(content)
            damage(document, changed)
            document["object"]["sha256"] = hashlib.sha256(changed).hexdigest()
            (tmp_path / "bad.graft").write_bytes(encode_anew(document, bytes(changed)))
            answer = run(tmp_path, op="apply", pid=target.pid, bundle=str(tmp_path / "bad.graft"))
            problems = [p["reason"] for e in answer.events for p in e.get("problems", [])]
            wanted = "UnresolvedReference" if damage is lost_slot else "BundleMalformed"
            # Two of one function also want one site.
            assert (answer.code, problems[:1]) == (3, [wanted]), (damage, answer)
            assert target.maps() == maps
