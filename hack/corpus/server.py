"""A program of the corpus that runs, and its load; both end with the block that started them."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hack.cluster.processes import children
from hack.corpus.bundles import Ground
from hack.corpus.cases import Corpus
from hack.tools import ToolFailedError

# A corpus run that is killed must not leave servers behind (setpriv(1); kept over execve).
WITH_US = ("setpriv", "--pdeathsig", "TERM")
START_SECONDS, STOP_SECONDS = 20.0, 20.0


@contextmanager
def server(corpus: Corpus, ground: Ground, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start the program of a case and wait until it listens.

    Raises:
        ToolFailedError: it ended, or does not listen.
    """
    command = ground.program.start(corpus.folder, folder, ground.built, ground.case.name)
    log = (folder / "server.log").open("wb")
    with log, _child(command, folder, log) as child:
        _wait_for(ground.program.port, child, folder / "server.log")
        yield child


@contextmanager
def load(ground: Ground, folder: Path) -> Iterator[Path]:
    """Start the load generator; the file that is yielded holds what it wrote once the block has ended."""
    said = folder / "load.log"
    # The engine must get a processor, on whatever machine this is.
    command = ["nice", "-n", "19", *ground.program.load(folder, ground.case.name)]
    with said.open("wb") as out, _child(command, folder, out, signal.SIGINT) as child:
        time.sleep(1.0)
        if child.poll() is not None:
            raise ToolFailedError(f"{command[3]} ended at once: {said.read_text()[-300:]}")
        yield said


@contextmanager
def _child(
    command: list[str], folder: Path, out: object, end: signal.Signals = signal.SIGTERM
) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*WITH_US, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=out,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
    ) as child:
        try:
            yield child
        finally:
            _stop(child, end)


def _stop(child: subprocess.Popen[bytes], end: signal.Signals) -> None:
    rest = children(child.pid)
    child.send_signal(end)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        for pid in rest:
            os.kill(pid, signal.SIGKILL)


def processes(child: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of a server: itself, and the workers that it forked."""
    return [child.pid, *children(child.pid)]


def _wait_for(port: int, child: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        if child.poll() is not None or time.monotonic() > until:
            raise ToolFailedError(f"{child.args!r} does not listen on port {port}: {log.read_text()[-400:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
