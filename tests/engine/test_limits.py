"""Limits of a process that are nearly reached: address space, threads, mappings, memory, room near its code."""

import errno
import os
import resource
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest
from conftest import ODD, Target, run_target
from odd import apply, is_refused, new_from_now_on, untouched, works, works_by_holding

from podgraft_bundle.protocol import Request
from podgraft_engine import inspection
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.main import serve
from podgraft_engine.target import syscalls


def lower(target: Target, name: str, soft: int) -> int:
    """Set a soft limit of the target and return what it was."""
    which = getattr(resource, f"RLIMIT_{name}")
    before, hard = resource.prlimit(target.pid, which)
    resource.prlimit(target.pid, which, (soft, hard))
    return before


@pytest.mark.parametrize(("what", "line", "name"), [("AS", "VmSize", "address space"), ("DATA", "VmData", "data size")])
def test_a_process_that_may_map_nothing_more_is_refused(odd: Target, what: str, line: str, name: str) -> None:
    """The limit is what is in use."""
    status = Path(f"/proc/{odd.pid}/status").read_text()
    used = next(int(words.split()[1]) * 1024 for words in status.splitlines() if words.startswith(f"{line}:"))
    before = lower(odd, what, used)
    with untouched(odd):
        is_refused(apply(odd), "ResourceLimit", name)
    lower(odd, what, before)
    works(odd)


def test_limits_that_are_none_of_ours(odd: Target) -> None:
    """No file, no stack, no locked memory, a second of processor time: nothing of ours needs them or gets a signal."""
    stat = Path(f"/proc/{odd.pid}/stat").read_text().rsplit(")", 1)[1].split()
    used = (int(stat[11]) + int(stat[12])) // os.sysconf("SC_CLK_TCK")
    for name, soft in (("NOFILE", 0), ("STACK", 0), ("FSIZE", 0), ("MEMLOCK", 0), ("CORE", 0), ("CPU", used + 1)):
        lower(odd, name, soft)
    works(odd)
    works(odd)


def test_a_process_that_may_make_no_thread(odd_program: Path, tmp_path: Path) -> None:
    """The helper cannot start, which is said; the program goes on and is patched when it may."""
    shutil.copytree(odd_program.parent, tmp_path / "odd")
    tmp_path.chmod(0o755)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    program = tmp_path / "odd" / "odd"
    user = ["/usr/bin/setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    threads = 4
    start = (f"--nproc={threads}:", *user, str(program), "0", "2")
    for target in run_target(Path("/usr/bin/prlimit"), *start, program=program):
        text, tids = target.text(), target.tids()
        assert len(tids) == threads
        answer = apply(target)
        assert (answer.code, answer.last["reason"]) == (1, "HelperUnreachable"), answer
        assert "limit on threads" in answer.last["detail"]
        assert (target.text(), target.tids()) == (text, tids)
        assert target.report()["eintr"] == 0
        subprocess.run([*user, "prlimit", f"--pid={target.pid}", "--nproc=100:"], check=True)
        works(target)


def test_a_process_that_has_all_mappings_it_may_have_is_refused(odd: Target) -> None:
    """vm.max_map_count, and what the program gives back of it."""
    for left in (0, 2, 5, 8, 60):
        assert int(odd.ask(f"crowd {left}")) > 1000
        with untouched(odd):
            is_refused(apply(odd), "ResourceLimit", "max_map_count")
    assert odd.ask("spread") == "0"
    works(odd)


@pytest.mark.parametrize("left", [0, 4, 8, 14, 18])
def test_mappings_that_run_out_in_the_middle(odd: Target, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """The program maps memory between our look and our work: wherever that ends, nothing breaks and it can go on."""
    text, tids = odd.text(), odd.tids()
    odd.ask(f"crowd {left}")
    monkeypatch.setattr(inspection, "check_limits", lambda *_: None)
    first = serve(request_of(odd, deadline=60))
    assert first in (0, 1)
    report = odd.report()
    assert (report["wrong"], report["eintr"]) == (0, 0)
    assert report["changes"] <= 1
    assert odd.ask("spread") == "0"
    works(odd, text, tids, begun=first != 0)  # the helper of the first attempt is still there


def request_of(target: Target, **more: object) -> Request:
    return Request(op="apply", pid=target.pid, bundle=str(target.program.parent / "bundle.graft"), **more)


class OutOfMemory:
    """Lets one of the helper's memory calls fail: the n-th from when it is told so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        real = Helper.call

        def call(helper: Helper, number: int, *args: int) -> int:
            if number in (syscalls.MMAP, syscalls.MPROTECT, syscalls.MREMAP, syscalls.MUNMAP):
                self.left -= 1
                if self.left == 0:
                    return -errno.ENOMEM
            return real(helper, number, *args)

        monkeypatch.setattr(Helper, "call", call)

    def at(self, n: int) -> None:
        self.left = n

    @property
    def came(self) -> bool:
        return self.left <= 0


def test_any_call_for_memory_may_fail(odd_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, of an apply and of a revert: the next engine goes on, or begins anew."""
    fault = OutOfMemory(monkeypatch)
    for n in count(1):
        for target in run_target(odd_program, "0", "1"):
            text = target.text()
            fault.at(n)
            applied = serve(request_of(target))
            in_apply = fault.came
            fault.at(0)
            assert applied in (0, 1)
            assert serve(request_of(target)) == 0
            new_from_now_on(target)
            fault.at(n)
            reverted = serve(Request(op="revert", pid=target.pid, name=ODD))
            in_revert = fault.came
            fault.at(0)
            if reverted:
                assert serve(Request(op="revert", pid=target.pid, name=ODD)) in (0, 3)
            assert target.text() == text
            report = target.report()
            assert (report["wrong"], report["eintr"], report["changes"]) == (0, 0, 2)
        if not in_apply and not in_revert:
            break
    assert n > 20


def test_no_room_near_the_code_is_a_refusal(odd: Target) -> None:
    """New code must lie within 2 GiB of the old one."""
    assert odd.ask("fill") == "0"
    with untouched(odd):
        is_refused(apply(odd), "NoRoomNearby", "within")


def test_no_room_near_the_c_library_only_takes_the_wake_up_points(odd: Target) -> None:
    """Threads are held instead."""
    text = odd.text()
    assert odd.ask("fill-libc") == "0"
    works_by_holding(odd, text)


def test_a_large_process_has_wake_up_points(odd: Target) -> None:
    """Its memory leaves no room below its libraries; above them there is some."""
    assert odd.ask("large") == "0"
    applied = apply(odd)
    assert applied.code == 0, applied
    assert "wakeup" in {e["how"] for e in applied.of("migrated")}
