"""A server on loopback under steady open-loop load (examples/redis/load, bench/load)."""

import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import BenchFailedError
from bench.served import Served
from hack.cluster.processes import children
from hack.demo.load import RECORD
from hack.images.contents import load_generator

# Less than two clients for each I/O thread of Redis: with more, those threads spin, and two processors are not enough.
CONNECTIONS, RATE = 4, 500
LONGEST_LOAD_S = 7200


class Server:
    """One server with a load generator."""

    def __init__(self, stack: ExitStack, served: Served, folder: Path) -> None:
        self._stack = stack
        self._served = served
        self._folder = folder
        self.start()
        words = (f"--port={served.port}", f"--connections={CONNECTIONS}", f"--rate={RATE}")
        command = [load_generator(folder, served.load), *words, f"--seconds={LONGEST_LOAD_S}", f"--out={folder}"]
        self._load = stack.enter_context(subprocess.Popen(list(map(str, command))))
        stack.callback(self._load.kill)
        self._wait_for(folder / "summary.json")

    @property
    def pids(self) -> list[int]:
        """The server's processes: itself, and the workers that it forked."""
        return [self._process.pid, *children(self._process.pid)]

    def start(self) -> None:
        """Start the server; who needs an answer waits for it."""
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._served.command, stdin=quiet, stdout=quiet, cwd=self._folder)
        # SIGTERM: a master process takes its workers with it.
        self._stack.callback(self._end)

    def restart(self) -> None:
        """End the server as an operator would, and start it again."""
        self._end()
        self.start()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def _wait_for(self, summary: Path) -> None:
        """The load writes it once all its connections have had a right answer."""
        until = time.monotonic() + 20
        while not summary.exists():
            if time.monotonic() > until or self._load.poll() is not None or self._process.poll() is not None:
                raise BenchFailedError(f"{self._served.command[0]} does not answer the load")
            time.sleep(0.02)

    def records(self) -> "NDArray[Any]":
        """End the load; return all requests."""
        self._load.send_signal(signal.SIGTERM)
        self._load.wait(30)
        return np.frombuffer((self._folder / "records.bin").read_bytes(), RECORD)
