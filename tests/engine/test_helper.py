"""Reading that must not fail or come too late: the helper waits two seconds, threads come and go."""

import time
from typing import Any

import pytest
from conftest import Target, engine

from podgraft_bundle.protocol import Request
from podgraft_engine.helper import carrier
from podgraft_engine.main import serve
from podgraft_engine.target.ehframe import EhFrame
from podgraft_engine.target.proc import Process


def test_unwind_data_that_takes_long_to_read_loses_no_helper(
    target: Target, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large static program has no .eh_frame_hdr: everything is parsed, and a revert must not fail for that."""
    assert engine(target.pid, op="apply", bundle=bundle).code == 0
    read, naps = EhFrame.of_elf, [carrier.IDLE_S + 1.0]

    def slowly(elf: Any) -> EhFrame | None:
        time.sleep(naps.pop() if naps else 0)
        return read(elf)

    monkeypatch.setattr(EhFrame, "of_elf", slowly)
    assert serve(Request(op="revert", pid=target.pid, name="pairs-2")) == 0
    assert not naps


def test_threads_that_end_meanwhile_do_not_mean_the_end_of_the_process(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thread numbers wrap around: a short-lived thread may be the first of the list, and be gone when it is read."""
    process = Process(target.pid)
    monkeypatch.setattr(process, "threads", lambda: sorted(target.tids(), reverse=True))
    assert process.living_thread() == target.pid
    ended = [2**22, 2**22]
    monkeypatch.setattr(process, "living_thread", lambda: ended.pop() if ended else target.pid)
    assert any(m.path == str(target.program) for m in process.maps())
    assert not ended
