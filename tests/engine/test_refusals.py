"""What bad input gets: a reason, and the target untouched."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import forge
import pytest
from conftest import PAIR_FUNCTIONS, TARGETS, Target, engine, run_target, start_engine


@pytest.fixture
def untouched(target: Target) -> "tuple[list[str], bytes]":
    return target.maps(), target.text()


@pytest.fixture
def unused_bundle(built: Path, tmp_path: Path) -> str:
    """A bundle for a function that nobody calls, so that its bytes may be changed while the program runs."""
    out = tmp_path / "unused.graft"
    forge.forge(built / "pairs", built / "patch.o", ["unused"], out, name="unused")
    return str(out)


def site_address(target: Target, bundle: str) -> int:
    return int(engine(target.pid, op="check", bundle=bundle).last["sites"][0]["address"])


def test_a_text_that_differs_in_one_byte_is_refused(target: Target, unused_bundle: str) -> None:
    """The pre-image is compared with what is in memory, not with the file."""
    address = site_address(target, unused_bundle)
    fd = os.open(f"/proc/{target.pid}/mem", os.O_RDWR)
    byte = os.pread(fd, 1, address + 1)
    os.pwrite(fd, bytes([byte[0] ^ 0xFF]), address + 1)
    os.close(fd)
    maps, text = target.maps(), target.text()
    answer = engine(target.pid, op="apply", bundle=unused_bundle)
    assert (answer.code, answer.last["reason"]) == (3, "PreimageMismatch")
    assert (target.maps(), target.text()) == (maps, text)


def test_a_page_that_somebody_else_changed_is_refused(target: Target, unused_bundle: str) -> None:
    """The same bytes in a page that is no longer the file's: a breakpoint may come and go there."""
    address = site_address(target, unused_bundle)
    fd = os.open(f"/proc/{target.pid}/mem", os.O_RDWR)
    os.pwrite(fd, os.pread(fd, 1, address), address)
    os.close(fd)
    answer = engine(target.pid, op="apply", bundle=unused_bundle)
    assert (answer.code, answer.last["reason"]) == (3, "PageChangedByOthers")


def test_another_build_is_refused(built: Path, bundle: str, tmp_path: Path) -> None:
    """A process of the same program with another build id."""
    other = forge.compile_program(TARGETS / "pairs.c", tmp_path / "pairs", "-DOTHER", "-O1")
    for target in run_target(other, "1", "1"):
        maps = target.maps()
        answer = engine(target.pid, op="apply", bundle=bundle)
        assert (answer.code, answer.last["reason"]) == (3, "ModuleNotMapped")
        assert target.maps() == maps
    assert built.exists()


def test_a_traced_process_is_refused(target: Target, bundle: str, untouched: "tuple[list[str], bytes]") -> None:
    """Somebody else's tracer stays alone."""
    script = (
        "import ctypes, sys; libc = ctypes.CDLL(None); libc.ptrace(0x4206, int(sys.argv[1]), 0, 0);"
        "print('seized', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(target.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout.readline() == "seized\n"
        answer = engine(target.pid, op="apply", bundle=bundle)
        tracer.stdin.close()
    assert (answer.code, answer.last["reason"]) == (3, "AlreadyTraced")
    assert (target.maps(), target.text()) == untouched


@pytest.mark.parametrize("pid", [2**22 - 1, 2**31 - 1])
def test_a_pid_that_is_no_process_is_refused(bundle: str, pid: int) -> None:
    """No process, no change."""
    answer = engine(pid, op="apply", bundle=bundle)
    assert (answer.code, answer.last["reason"]) == (3, "NoSuchProcess")


def test_a_reused_pid_is_refused(target: Target, bundle: str) -> None:
    """The start time is part of the request."""
    answer = engine(target.pid, op="apply", bundle=bundle, start_time=1)
    assert (answer.code, answer.last["reason"]) == (3, "NoSuchProcess")


def test_without_the_right_to_trace_it_is_refused(target: Target, bundle: str) -> None:
    """As for another user's process: the kernel says no before anything is touched."""
    maps = target.maps()
    prefix = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    answer = engine(target.pid, op="apply", bundle=bundle, prefix=prefix)
    assert (answer.code, answer.last["reason"]) == (3, "PermissionDenied")
    assert target.maps() == maps


def test_a_process_that_exits_in_the_middle(target: Target, bundle: str) -> None:
    """The engine says so and ends with exit code 1."""
    target.ask("linger")
    child = start_engine(target.pid, op="apply", bundle=bundle, deadline=30)
    last = ""
    for last in child.stdout:
        if '"waiting"' in last:
            target.child.kill()
            target.child.wait()
    child.wait(timeout=20)
    assert child.returncode == 1
    assert '"ProcessExited"' in last


def test_a_second_engine_is_refused_while_one_works(target: Target, bundle: str) -> None:
    """One engine per process at a time."""
    target.ask("linger")
    first = start_engine(target.pid, op="apply", bundle=bundle, deadline=20)
    for line in first.stdout:
        if '"waiting"' in line:
            break
    second = engine(target.pid, op="revert", name="pairs-2")
    assert (second.code, second.last["reason"]) == (3, "Busy")
    target.ask("go on")
    first.communicate(timeout=30)
    assert first.returncode == 0


def test_an_unknown_patch_cannot_be_reverted(target: Target) -> None:
    """Nothing of that name is in the process."""
    answer = engine(target.pid, op="revert", name="nothing")
    assert (answer.code, answer.last["reason"]) == (3, "NotApplied")


def test_a_request_that_is_no_request_is_a_usage_error(target: Target) -> None:
    """Unknown fields are refused."""
    answer = engine(target.pid, op="apply", nonsense=1)
    assert answer.code == 2
    assert "nonsense" in answer.stderr


def test_a_function_of_another_patch_is_refused(target: Target, built: Path, bundle: str, tmp_path: Path) -> None:
    """Two patches must not replace the same function."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    other = tmp_path / "other.graft"
    forge.forge(built / "pairs", built / "patch.o", PAIR_FUNCTIONS[:1], other, name="another")
    answer = engine(target.pid, op="apply", bundle=str(other))
    assert (answer.code, answer.last["reason"]) == (3, "ConflictingPatch")


def test_a_program_that_uses_its_gs_base_is_refused(target: Target, bundle: str) -> None:
    """The value is the program's; all its threads are looked at before they are moved, and none is changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    gs_base_at = 22 * 8  # user_regs_struct
    for tid in target.tids():
        assert libc.ptrace(0x4206, tid, None, None) == 0
        libc.ptrace(0x4207, tid, None, None)
        os.waitpid(tid, 0x40000000)
        assert libc.ptrace(6, tid, ctypes.c_void_p(gs_base_at), ctypes.c_void_p(0x1000)) == 0
        libc.ptrace(17, tid, None, None)
    time.sleep(0.05)
    answer = engine(target.pid, op="apply", bundle=bundle)
    assert (answer.code, answer.last["reason"]) == (3, "GsBaseInUse")
