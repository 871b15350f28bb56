"""Which builds a real process maps."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from podgraft_agent.modules import ModuleReader, start_time
from podgraft_bundle.buildid import read_build_id

PROC = Path("/proc")


def build_id(path: Path) -> str:
    with path.open("rb") as stream:
        found = read_build_id(stream)
    assert found is not None
    return found


@pytest.fixture
def sleeper(tmp_path: Path) -> Path:
    """A copy of a system program, so that a test may remove it."""
    return Path(shutil.copy("/bin/sleep", tmp_path / "sleeper"))


def test_program_and_libraries_are_found(sleeper: Path) -> None:
    """The program's own build id and those of its libraries are there."""
    with subprocess.Popen([sleeper, "60"]) as child:
        wait_for_exec(child.pid, sleeper)
        found = ModuleReader(PROC).read(child.pid)
        child.kill()
    assert build_id(sleeper) in found.build_ids
    assert len(found.build_ids) >= 2, "and libc"
    assert found.vdso > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="map_files needs root")
def test_deleted_and_replaced_file_is_known_by_what_runs(sleeper: Path) -> None:
    """After an upgrade on disk, the build that runs counts, not the file that has its name."""
    expected = build_id(sleeper)
    with subprocess.Popen([sleeper, "60"]) as child:
        wait_for_exec(child.pid, sleeper)
        sleeper.unlink()
        shutil.copy("/bin/cat", sleeper)
        found = ModuleReader(PROC).read(child.pid)
        child.kill()
    assert expected in found.build_ids
    assert build_id(sleeper) not in found.build_ids


def test_vanished_process_is_an_error() -> None:
    """Who looks at a process that has ended is told so."""
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
    with pytest.raises(OSError, match=str(child.pid)):
        ModuleReader(PROC).read(child.pid)


def test_start_time_survives_a_nasty_name(tmp_path: Path) -> None:
    """A program name with spaces and parentheses does not shift the fields."""
    (tmp_path / "7").mkdir()
    fields = ["S", *map(str, range(1, 50))]
    (tmp_path / "7/stat").write_text(f"7 (a) b (c) {' '.join(fields)}\n")
    assert start_time(tmp_path, 7) == 19, "field 22; field 3 is the state"
    assert start_time(PROC, os.getpid()) == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def wait_for_exec(pid: int, program: Path) -> None:
    """Wait until the loader has mapped the libraries of a started program."""
    deadline = time.monotonic() + 10
    while "/libc" not in Path(f"/proc/{pid}/maps").read_text() or Path(f"/proc/{pid}/exe").readlink() != program:
        assert time.monotonic() < deadline
