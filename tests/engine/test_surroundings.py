"""What may surround a target: tracers, frozen groups, limits that are nearly reached, text of unusual kinds."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import forge
import pytest
from conftest import PAIR_FUNCTIONS, TARGETS, EngineAnswer, Target, engine, run_target, start_engine

from podgraft_bundle.protocol import Request
from podgraft_engine import inspection
from podgraft_engine.helper.mailbox import Helper
from podgraft_engine.main import serve
from podgraft_engine.target import seals, syscalls
from podgraft_engine.target.memory_group import headroom, place_in
from podgraft_engine.target.proc import Process

NAME = "pairs-2"
KIB, MIB = 2**10, 2**20


@pytest.fixture(scope="module")
def odd_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that makes its surroundings itself, with its bundle beside it."""
    return build_odd(tmp_path_factory.mktemp("odd"))


def build_odd(folder: Path, *flags: str) -> Path:
    program = forge.compile_program(TARGETS / "odd.c", folder / "odd", *flags)
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o")
    forge.forge(program, folder / "patch.o", PAIR_FUNCTIONS, folder / "bundle.graft", name=NAME)
    return program


@pytest.fixture
def odd(odd_program: Path) -> Iterator[Target]:
    yield from run_target(odd_program, "0", "2")


def apply(target: Target, **more: object) -> EngineAnswer:
    return engine(target.pid, op="apply", bundle=str(target.program.parent / "bundle.graft"), **more)


def works(target: Target, text: bytes | None = None, tids: list[int] | None = None, *, begun: bool = False) -> None:
    """Patch and revert: all threads move, but for those that moved when it was begun; nothing is left in the text."""
    text, tids = text or target.text(), tids or target.tids()
    applied = apply(target)
    assert applied.code == 0, applied
    moved = sorted(e["tid"] for e in applied.of("migrated"))
    assert moved == tids or (begun and set(moved) < set(tids))
    new_from_now_on(target)
    reverted = engine(target.pid, op="revert", name=NAME)
    assert reverted.code == 0, reverted
    assert target.text() == text
    report = target.report()
    assert (report["wrong"], report["eintr"]) == (0, 0)


def new_from_now_on(target: Target) -> None:
    target.report()
    while (seen := target.report())["new"] == 0:
        time.sleep(0.01)
    assert seen["old"] == 0


@contextmanager
def untouched(target: Target) -> Iterator[None]:
    maps, text = target.maps(), target.text()
    yield
    assert target.maps() == maps
    assert target.text() == text
    target.report()
    while (seen := target.report())["old"] == 0:
        time.sleep(0.01)
    assert (seen["new"], seen["wrong"], seen["eintr"]) == (0, 0, 0)


def is_refused(answer: EngineAnswer, reason: str, detail: str) -> None:
    assert (answer.code, answer.last.get("reason")) == (3, reason), answer
    assert detail in answer.last["detail"]


# Tracers


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
        is_refused(engine(odd.pid, op="revert", name=NAME), "TargetFrozen", "all threads are")
    odd.ask("go on")
    applied = apply(odd)
    assert applied.code == 0, applied
    new_from_now_on(odd)
    assert engine(odd.pid, op="revert", name=NAME).code == 0
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
        is_refused(engine(odd.pid, op="revert", name=NAME), "ResourceLimit", "control group")
        new_from_now_on(odd)
        limit.write_text(str(use + 64 * MIB))
        assert engine(odd.pid, op="revert", name=NAME).code == 0
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


# Limits of the process


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
    used = next(int(words.split()[1]) * KIB for words in status.splitlines() if words.startswith(f"{line}:"))
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
            reverted = serve(Request(op="revert", pid=target.pid, name=NAME))
            in_revert = fault.came
            fault.at(0)
            if reverted:
                assert serve(Request(op="revert", pid=target.pid, name=NAME)) in (0, 3)
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


def works_by_holding(odd: Target, text: bytes) -> None:
    """Patch and revert without a wake-up point."""
    applied = apply(odd)
    assert applied.code == 0, applied
    assert {e["how"] for e in applied.of("migrated")} == {"sleeping"}
    assert engine(odd.pid, op="revert", name=NAME).code == 0
    assert odd.text() == text


# Text of unusual kinds


def test_text_that_is_no_longer_the_files_is_refused(odd: Target) -> None:
    """As of servers that copy their code to huge pages."""
    assert odd.ask("copy") == "0"
    maps = odd.maps()
    is_refused(apply(odd), "ModuleNotMapped", "no code of odd")
    assert odd.maps() == maps
    assert odd.report()["wrong"] == 0


def test_sealed_text_is_refused(odd: Target) -> None:
    """mseal(2): the kernel would refuse the page switch, in the middle."""
    sealed = int(odd.ask("seal"))
    if sealed:
        pytest.skip(f"mseal: {os.strerror(-sealed)} (kernel 6.10)")
    with untouched(odd):
        is_refused(apply(odd), "TextSealed", "mseal")


def test_sealed_text_of_a_large_process_is_refused_by_the_helper(odd: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """There smaps is not read: it would keep the program from mapping memory."""
    if odd.ask("seal") != "0":
        pytest.skip("no mseal (kernel 6.10)")
    text = odd.text()
    monkeypatch.setattr(seals, "LARGEST", 0)
    assert serve(Request(op="apply", pid=odd.pid, bundle=str(odd.program.parent / "bundle.graft"))) == 3
    assert odd.text() == text
    assert engine(odd.pid, op="status").last["patches"] == []


def test_a_sealed_c_library_only_takes_the_wake_up_points(odd: Target) -> None:
    """Threads are held instead."""
    if odd.ask("seal-libc") != "0":
        pytest.skip("no mseal (kernel 6.10)")
    works_by_holding(odd, odd.text())


def pages_in_huge(target: Target) -> int:
    """Return how much of the program's text is mapped by huge pages, in KiB."""
    lines = iter(Path(f"/proc/{target.pid}/smaps").read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(target.program)) and " r-xp " in line:
            fields = dict(next(lines).split(":") for _ in range(23))
            found += sum(int(fields.get(f, "0 kB").split()[0]) for f in ("ShmemPmdMapped", "FilePmdMapped"))
    return found


def test_text_in_huge_pages_of_the_page_cache() -> None:
    """A page of it is switched like any other, before and after the kernel has collapsed what is left."""
    folder = Path(f"/dev/shm/podgraft-{os.getpid()}")  # noqa: S108 (a tmpfs is wanted: there the kernel collapses files)
    folder.mkdir(mode=0o700)
    try:
        program = build_odd(folder, "-DBIG", "-Wl,-z,max-page-size=0x200000")
        for target in run_target(program, "1", "2"):
            text = target.text()
            if target.ask("collapse") != "0":
                pytest.skip("no MADV_COLLAPSE for files (kernel 6.1)")
            assert pages_in_huge(target) >= 2048
            works(target, text)
            target.ask("collapse")
            assert apply(target).code == 0
            target.ask("collapse")
            new_from_now_on(target)
            assert engine(target.pid, op="revert", name=NAME).code == 0
            target.ask("collapse")
            assert target.text() == text
            assert target.quit()["wrong"] == 0
    finally:
        shutil.rmtree(folder)


def test_memory_that_is_locked(odd: Target) -> None:
    """mlockall, now and later; the pages that were switched are no longer locked, which docs/limitations.md says."""
    assert odd.ask("lock") == "0"
    works(odd)
    works(odd)
