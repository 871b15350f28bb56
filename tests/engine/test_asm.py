"""The committed machine code is what its source says."""

import subprocess
from importlib import resources
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "nodeagent" / "podgraft_engine" / "helper" / "asm" / "block.S"


def test_block_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    """`make asm` writes block.bin; nobody edits it by hand."""
    subprocess.run(["gcc", "-c", "-o", tmp_path / "block.o", SOURCE], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "block.o", tmp_path / "block.bin"], check=True)
    committed = resources.files("podgraft_engine.helper").joinpath("asm/block.bin").read_bytes()
    assert (tmp_path / "block.bin").read_bytes() == committed


def test_entry_points_are_where_the_engine_jumps_to(tmp_path: Path) -> None:
    """The carrier entry of block.py is the label in the source."""
    from podgraft_engine.helper import block

    subprocess.run(["gcc", "-c", "-o", tmp_path / "block.o", SOURCE], check=True)
    names = subprocess.run(["nm", tmp_path / "block.o"], check=True, capture_output=True, text=True).stdout
    address = next(int(line.split()[0], 16) for line in names.splitlines() if line.endswith(" carrier"))
    assert address == block.CARRIER == block.SLOTS.size


def test_the_way_into_hooks_is_what_its_source_assembles_to(tmp_path: Path) -> None:
    """hook.bin is the source's, and the way out begins where room.py says."""
    from podgraft_engine.hooks import room

    source = SOURCE.parents[2] / "hooks" / "asm" / "hook.S"
    subprocess.run(["gcc", "-c", "-o", tmp_path / "hook.o", source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "hook.o", tmp_path / "hook.bin"], check=True)
    assert (tmp_path / "hook.bin").read_bytes() == room.CODE
    lines = subprocess.run(["nm", tmp_path / "hook.o"], check=True, capture_output=True, text=True).stdout.splitlines()
    known = {line.split()[2]: int(line.split()[0], 16) for line in lines}
    assert (known["leave"], known["CONTROL"]) == (room.LEAVE, room._CONTROL_AT)
