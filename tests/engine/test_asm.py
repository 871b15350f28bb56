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
