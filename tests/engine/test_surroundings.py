"""Others that have a hold on a target: tracers, freezers, a stop signal, groups with a memory limit."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import ODD, Target, engine, start_engine
from odd import apply, is_refused, new_from_now_on, untouched, works

from podgraft_engine.target.memory_group import headroom, place_in
from podgraft_engine.target.proc import Process

KIB, MIB = 2**10, 2**20


def strace(pid: int, out: Path) -> "subprocess.Popen[str]":
    tracer = subprocess.Popen(
        ["strace", "-f", "-o", out, "-p", str(pid)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "attached" not in tracer.stderr.readline():
        assert tracer.poll() is None
    return tracer


def gdb(pid: int, _out: Path) -> "subprocess.Popen[str]":
    tracer = subprocess.Popen(
        ["gdb", "-q", "-nx", "-p", str(pid), "-ex", r"echo here\n"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "DEBUGINFOD_URLS": ""},
    )
    while tracer.stdout.readline() != "here\n":
        assert tracer.poll() is None
    return tracer


@pytest.mark.parametrize("tool", [strace, gdb])
def test_a_process_of_another_tracer_is_left_alone_until_that_has_gone(
    odd: Target, tool: "Callable[[int, Path], subprocess.Popen[str]]", tmp_path: Path
) -> None:
    """Real strace -f, and gdb, which holds all threads stopped."""
    maps, text = odd.maps(), odd.text()
    tracer = tool(odd.pid, tmp_path / "out")
    try:
        is_refused(apply(odd), "AlreadyTraced", str(tracer.pid))
        assert odd.maps() == maps
    finally:
        if tool is strace:
            tracer.send_signal(signal.SIGINT)
        else:
            tracer.stdin.write("detach\nquit\n")
        tracer.communicate(timeout=20)
    assert odd.text() == text
    works(odd)


# Control groups


def mount_of(*wanted: str) -> Path | None:
    """Return where a hierarchy of control groups is mounted: kind of file system and controller, or kind alone."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == wanted[0] and set(wanted[1:]) <= set(options.split(",")):
            return Path(place)
    return None


@contextmanager
def group(parent: Path, pid: int) -> Iterator[Path]:
    """Move a process into a new group below another, and at the end back."""
    folder = parent / f"podgraft-test-{pid}"
    folder.mkdir()
    (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield folder
    finally:
        with suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(str(pid))
        for _ in range(100):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.05)


FREEZERS = [
    pytest.param(("cgroup", "freezer"), "freezer.state", "FROZEN", "THAWED", id="v1"),
    pytest.param(("cgroup2",), "cgroup.freeze", "1", "0", id="v2"),
]


@contextmanager
def frozen(pid: int, where: tuple[str, ...], file: str, freeze: str, thaw: str) -> Iterator[None]:
    mount = mount_of(*where)
    if mount is None:
        pytest.skip(f"no {' '.join(where)} is mounted here")
    with group(mount, pid) as folder:
        (folder / file).write_text(freeze)
        try:
            settled = "FROZEN" if file == "freezer.state" else "frozen 1"
            while settled not in (folder / (file if file == "freezer.state" else "cgroup.events")).read_text():
                time.sleep(0.01)
            yield
        finally:
            (folder / file).write_text(thaw)


@pytest.mark.parametrize(("where", "file", "freeze", "thaw"), FREEZERS)
def test_a_frozen_process_is_refused_and_patched_when_it_is_thawed(
    odd: Target, where: tuple[str, ...], file: str, freeze: str, thaw: str
) -> None:
    """Nobody would answer us; the kernel tells of the two freezers in different ways."""
    maps, text = odd.maps(), odd.text()
    with frozen(odd.pid, where, file, freeze, thaw):
        began = time.monotonic()
        is_refused(apply(odd), "TargetFrozen", "all threads are")
        assert time.monotonic() - began < 10
        assert odd.maps() == maps
        assert odd.text() == text
    works(odd)


@pytest.mark.parametrize(("where", "file", "freeze", "thaw"), FREEZERS)
def test_a_process_that_freezes_in_the_middle(
    odd: Target, where: tuple[str, ...], file: str, freeze: str, thaw: str
) -> None:
    """The engine ends with a reason; a revert in the frozen process is refused, and after the thaw the next goes on."""
    text = odd.text()
    odd.ask("linger")
    child = start_engine(odd.pid, op="apply", bundle=str(odd.program.parent / "bundle.graft"), deadline=8)
    for line in child.stdout:
        if '"waiting"' in line:
            break
    with frozen(odd.pid, where, file, freeze, thaw):
        out, _ = child.communicate(timeout=40)
        assert child.returncode in (1, 4), out
        assert '"reason"' in out.splitlines()[-1]
        is_refused(engine(odd.pid, op="revert", name=ODD), "TargetFrozen", "all threads are")
    odd.ask("go on")
    applied = apply(odd)
    assert applied.code == 0, applied
    new_from_now_on(odd)
    assert engine(odd.pid, op="revert", name=ODD).code == 0
    assert odd.text() == text
    report = odd.quit()
    assert (report["wrong"], report["changes"]) == (0, 2)


def test_a_stopped_process_is_refused_untouched(odd: Target) -> None:
    """SIGSTOP is not a frozen group, and the reason says so."""
    with untouched(odd):
        os.kill(odd.pid, signal.SIGSTOP)
        try:
            is_refused(apply(odd), "NoCarrier", "stopped by a signal")
        finally:
            os.kill(odd.pid, signal.SIGCONT)
    works(odd)


def test_a_memory_group_at_its_limit_is_refused(odd: Target) -> None:
    """Our pages count there: the kernel would end the program for them (it did, with 64 KiB of room)."""
    mount = mount_of("cgroup", "memory") or mount_of("cgroup2")
    assert mount is not None
    text = odd.text()
    with group(mount, odd.pid) as folder:
        limit = next((folder / n for n in ("memory.limit_in_bytes", "memory.max") if (folder / n).exists()), None)
        if limit is None:
            pytest.skip("no memory controller here")
        use = int((folder / limit.name.replace("limit", "usage").replace("max", "current")).read_text())
        limit.write_text(str(use + 512 * KIB))
        room = headroom(Process(odd.pid))
        assert room is not None
        assert 0 < room < MIB
        with untouched(odd):
            is_refused(apply(odd), "ResourceLimit", "control group")
        limit.write_text(str(use + 64 * MIB))
        applied = apply(odd)
        assert applied.code == 0, applied
        limit.write_text(str(int((folder / "memory.usage_in_bytes").read_text()) + 512 * KIB))
        is_refused(engine(odd.pid, op="revert", name=ODD), "ResourceLimit", "control group")
        new_from_now_on(odd)
        limit.write_text(str(use + 64 * MIB))
        assert engine(odd.pid, op="revert", name=ODD).code == 0
        assert odd.text() == text


def test_a_group_of_version_2_is_found_and_read(tmp_path: Path) -> None:
    """By its mount as a container has it; page cache is given up before anybody is ended, the rest is not."""
    mounts = "31 1 0:27 /pods/a /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n"
    assert place_in(mounts, "/pods/a/one", unified=True) == ("sys/fs/cgroup", Path("one"))
    assert place_in(mounts, "/pods/b", unified=True) is None
    assert place_in(mounts.replace("/pods/a ", "/ "), "/../b", unified=True) is None
    assert place_in(mounts, "/pods/a", unified=False) is None
    root = tmp_path / "root" / "sys" / "fs" / "cgroup"
    for folder, most, used, cache in ((root, "max", 9 * MIB, 0), (root / "one", str(5 * MIB), 4 * MIB, MIB)):
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\nactive_file 0\n")
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "cgroup").write_text("0::/pods/a/one\n")
    process = Process(os.getpid())
    process.root = tmp_path
    assert headroom(process) == 2 * MIB
    (root / "memory.max").write_text(f"{10 * MIB}\n")
    assert headroom(process) == MIB
