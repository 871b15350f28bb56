"""A Redis on loopback under steady open-loop load (examples/redis/load)."""

import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import BenchFailedError
from hack.demo.load import RECORD
from hack.images.contents import load_generator
from hack.sources import redis

# Less than two clients for each I/O thread: with more, those threads spin, and two processors are not enough.
CONNECTIONS, RATE = 4, 500
LONGEST_LOAD_S = 7200


class Server:
    """One Redis on loopback with a load generator."""

    def __init__(self, stack: ExitStack, source: redis.Redis, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._binary = source.server
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self.start()
        load_generator(folder)
        words = (f"--port={self._port}", f"--connections={CONNECTIONS}", f"--rate={RATE}")
        command = [str(folder / "redis-load"), *words, f"--seconds={LONGEST_LOAD_S}", f"--out={folder}"]
        self._load = stack.enter_context(subprocess.Popen(command))
        stack.callback(self._load.kill)

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def start(self) -> None:
        """Start the server, and wait until it listens."""
        options = f"--port {self._port} --bind 127.0.0.1 --io-threads 4 --io-threads-do-reads yes --save".split()
        command = [str(self._binary), *options, "", "--dir", str(self._folder)]
        self._process = self._stack.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        self._stack.callback(self._process.kill)
        until = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", self._port)):
            if time.monotonic() > until:
                raise BenchFailedError("redis-server does not listen")
            time.sleep(0.02)

    def restart(self) -> None:
        """End the server as an operator would, and start it again."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        self.start()

    def records(self) -> "NDArray[Any]":
        """End the load; return all requests."""
        self._load.send_signal(signal.SIGTERM)
        self._load.wait(30)
        return np.frombuffer((self._folder / "records.bin").read_bytes(), RECORD)
