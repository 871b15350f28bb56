"""The helper waits two seconds for its next command: the engine does its reading before."""

import time
from typing import Any

import pytest
from conftest import Target, engine

from podgraft_bundle.protocol import Request
from podgraft_engine.helper import carrier
from podgraft_engine.main import serve
from podgraft_engine.target.ehframe import EhFrame


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
