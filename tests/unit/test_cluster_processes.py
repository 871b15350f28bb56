"""Recorded processes of the local cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

from hack.cluster import processes


def test_a_spawned_process_has_a_record_and_is_killed_by_it(tmp_path: Path) -> None:
    """What spawn() starts is found by its record, and gone after kill()."""
    record = tmp_path / "one.json"
    pid = processes.spawn(["sleep", "60"], record, tmp_path / "log", dict(os.environ))
    assert processes.recorded(record) == pid
    assert processes.kill(record) is True
    assert processes.recorded(record) is None
    assert not record.exists()


def test_kill_waits_for_children_that_die_with_their_parent(tmp_path: Path) -> None:
    """A child that the kernel ends together with its parent is gone when kill() returns."""
    record, command = tmp_path / "one.json", ["unshare", "--fork", "--kill-child", "sleep", "60"]
    pid = processes.spawn(command, record, tmp_path / "log", dict(os.environ))
    while not processes.children(pid):
        assert processes.recorded(record) == pid
    (child,) = processes.children(pid)
    processes.kill(record)
    assert processes.start_time(child) is None


def test_a_reused_pid_is_not_killed(tmp_path: Path) -> None:
    """A record whose start time is not that of the process belongs to somebody else."""
    with subprocess.Popen(["sleep", "60"]) as other:
        record = tmp_path / "one.json"
        started = processes.start_time(other.pid)
        assert started is not None
        record.write_text(json.dumps({"pid": other.pid, "start_time": started - 1}))
        assert processes.kill(record) is False
        assert other.poll() is None
        other.kill()


def test_a_missing_or_broken_record_is_no_process(tmp_path: Path) -> None:
    """Nothing recorded, or half of a record, means that there is nothing to end."""
    assert processes.recorded(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"pid": 1')
    assert processes.kill(tmp_path / "half.json") is False


def test_the_record_is_written_by_the_child_itself(tmp_path: Path) -> None:
    """The record is there before the command runs, so a killed parent leaves no unknown process."""
    record, seen = tmp_path / "one.json", tmp_path / "seen"
    script = f"import pathlib; pathlib.Path({str(seen)!r}).write_text(pathlib.Path({str(record)!r}).read_text())"
    pid = processes.spawn([sys.executable, "-c", script], record, tmp_path / "log", dict(os.environ))
    os.waitpid(pid, 0)
    assert json.loads(seen.read_text())["pid"] == pid
