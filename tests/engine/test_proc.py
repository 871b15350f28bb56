"""What is read from /proc, compared with what the files say."""

import mmap
import os
from pathlib import Path

import pytest

from podgraft_engine.target.maps import Maps
from podgraft_engine.target.proc import Process, StatusFile


def test_a_status_line_is_found_whole_and_no_other() -> None:
    """A key is the beginning of a line, not a part of another key or of a value."""
    status = StatusFile("Name:\tState: Z\nThreads:\t12\nx86_Threads:\t99\nSeccomp:\t2\nSeccomp_filters:\t3\n")
    assert status.get("Threads") == "12"
    assert status.get("Seccomp") == "2"
    assert status.get("State", "missing") == "missing"
    assert not StatusFile("")


def test_a_status_longer_than_one_read_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long list of groups must not hide the lines behind it: the seccomp mode is one of them."""
    process = Process(os.getpid())
    whole = {line.partition(":")[0] for line in Path("/proc/self/status").read_text().splitlines()}
    monkeypatch.setattr("podgraft_engine.target.proc.SMALL_FILE", 100)
    status = process.status(os.getpid())
    assert all(status.get(key, "missing") != "missing" for key in whole)


def test_a_mapped_file_with_spaces_in_its_name_is_listed(tmp_path: Path) -> None:
    """The path is all of the line's end, and anonymous memory has none."""
    path = tmp_path / "a file  of mine"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096, offset=4096):
        maps = Process(os.getpid()).maps()
    (found,) = [m for m in maps if m.path == str(path)]
    assert (found.end - found.start, found.offset, found.inode) == (4096, 4096, path.stat().st_ino)
    assert found.perms == "rw-s"
    assert len(maps) >= sum(1 for m in maps if m.path) + 1


def test_a_mapping_is_found_by_any_address_in_it_and_by_no_other() -> None:
    """Looking for one line gives what reading all of them gives, at every edge and in every gap."""
    process = Process(os.getpid())
    maps, everything = Maps(process), process.maps()
    for address in {0, *(edge + by for m in everything for edge in (m.start, m.end) for by in (-1, 0, 1))}:
        expected = next((m for m in everything if m.start <= address < m.end), None)
        assert maps.at(address) == expected
