"""Text of unusual kinds: copied, sealed, in huge pages, locked."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import ODD, Target, build_odd, engine, run_target
from odd import apply, is_refused, new_from_now_on, untouched, works, works_by_holding

from podgraft_bundle.protocol import Request
from podgraft_engine.main import serve
from podgraft_engine.target import seals


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
            assert engine(target.pid, op="revert", name=ODD).code == 0
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
