"""The engine client against small real programs that speak the protocol, well and badly."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from podgraft_agent import engine
from podgraft_agent.engine import Outcome, run_engine
from podgraft_bundle.errors import ExitCode, Reason
from podgraft_bundle.protocol import Event, Request

REFUSED = '{"event": "refused", "reason": "AlreadyTraced", "detail": "d", "hint": "h"}'
WAITING = '{"event": "waiting", "tid": 7, "name": "w", "why": "on its stack"}'
Program = Callable[[str], str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Return a function that makes a shell script into an engine."""

    def make(script: str) -> str:
        path = tmp_path / "engine"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def ask(command: str, deadline: float = 5.0) -> tuple[Outcome, list[Event]]:
    heard: list[Event] = []
    request = Request(op="apply", pid=1, bundle="/b", deadline=deadline)
    return asyncio.run(run_engine(command, request, heard.append)), heard


def test_request_and_events(program: Program, tmp_path: Path) -> None:
    """The request arrives as JSON on standard input; events are typed; the exit code is the answer."""
    outcome, heard = ask(program(f"cat > {tmp_path}/request; echo '{WAITING}'; exit 4"))
    assert Request.model_validate_json((tmp_path / "request").read_text()).bundle == "/b"
    assert [one.event for one in heard] == ["waiting"]
    assert outcome == Outcome(ExitCode.DEADLINE)


def test_refusal(program: Program) -> None:
    """A refusal comes with its reason."""
    outcome, _ = ask(program(f"cat > /dev/null; echo '{REFUSED}'; exit 3"))
    assert outcome.code is ExitCode.REFUSED
    assert outcome.trouble is not None
    assert outcome.trouble.reason is Reason.ALREADY_TRACED


BROKEN = {
    "no event before a bad end": ("echo oops >&2; exit 1", "oops"),
    "killed": ("kill -9 $$", "ended with -9"),
    "no protocol": ("echo hello; exec sleep 60", "wrote no event: b'hello"),
    "unknown exit code": ("exit 77", "ended with 77"),
    "refused without a reason": ("exit 3", "ended with 3"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_engine_is_a_failure_with_its_words(program: Program, case: str) -> None:
    """Whatever a broken engine does, the report says what was seen."""
    script, words = BROKEN[case]
    outcome, _ = ask(program(script))
    assert outcome.code is ExitCode.FAILED
    assert outcome.trouble is not None
    assert outcome.trouble.reason is Reason.INTERNAL
    assert words in outcome.trouble.detail


def test_chatty_engine_does_not_block(program: Program) -> None:
    """More on standard error than a pipe holds neither blocks nor is kept."""
    outcome, heard = ask(program(f"cat > /dev/null; head -c 300000 /dev/zero >&2; echo '{WAITING}'; exit 0"))
    assert (outcome.code, len(heard)) == (ExitCode.DONE, 1)


def test_stuck_engine_is_killed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that outlives its deadline by far is ended and reported."""
    monkeypatch.setattr(engine, "GRACE_SECONDS", 0.5)
    began = time.monotonic()
    outcome, _ = ask(program("exec sleep 60"), deadline=0.1)
    assert outcome.trouble is not None
    assert "did not end" in outcome.trouble.detail
    assert time.monotonic() - began < 10


def wait_for_text(path: Path) -> None:
    while not path.exists() or not path.read_text():
        time.sleep(0.05)


def test_cancelled_call_kills_its_child(program: Program, tmp_path: Path) -> None:
    """No engine outlives the agent that started it."""
    command = program(f"echo $$ > {tmp_path}/pid; exec sleep 60")

    async def main() -> None:
        task = asyncio.create_task(run_engine(command, Request(op="status", pid=1), lambda _: None))
        await asyncio.to_thread(wait_for_text, tmp_path / "pid")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
