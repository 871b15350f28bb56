"""What is patched while it works: programs that check their own results, and Redis under load."""

import json
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from hack.demo import bundle as demo
from hack.demo import observable
from hack.images.contents import load_generator
from hack.sources import redis
from tests.engine import forge
from tests.engine.conftest import PAIR_FUNCTIONS, TARGETS, Target
from tests.torture.engines import run

PATIENCE_S = 5.0


class Subject(Protocol):
    """A process under load. `judge` answers what is wrong with it, "" when nothing is.

    steady: it maps nothing by itself once it runs, so that what is there more must be ours. `begin` is done before each
    round of kills, by engines that nobody kills.
    """

    steady: bool
    bundle: str
    name: str
    target: Target

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def begin(self) -> None: ...
    def judge(self, *, patched: bool, eintr_allowed: int) -> str: ...


class Crowd:
    """Eight threads that talk to each other (targets/crowd.c), and a patch with all four hooks."""

    name, steady = "pairs-2", True

    def __init__(self, folder: Path) -> None:
        self._program = folder / "crowd"
        if not self._program.exists():
            forge.compile_program(TARGETS / "crowd.c", self._program)
            forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o", "-DHOOKS")
            forge.forge(self._program, folder / "patch.o", PAIR_FUNCTIONS, folder / "crowd.graft", name=self.name)
        self.bundle = str(folder / "crowd.graft")

    def __enter__(self) -> Self:
        child = subprocess.Popen([self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        self.target = Target(child, self._program)
        return self

    def __exit__(self, *_: object) -> None:
        self.target.child.kill()
        self.target.child.communicate()

    def begin(self) -> None:
        """Nothing."""

    def judge(self, *, patched: bool, eintr_allowed: int) -> str:
        """Look at counters over a moment in which every thread has to make progress."""
        total = self.target.report()
        until = time.monotonic() + PATIENCE_S
        seen = {"old": 0, "new": 0}
        while total["slowest"] == 0 or not sum(seen.values()):
            time.sleep(0.005)
            total = self.target.report()
            seen = {kind: seen[kind] + total[kind] for kind in seen}
            if time.monotonic() > until:
                return "stuck: a thread makes no progress"
        if total["wrong"] or total["eintr"] or total["epoll_eintr"] > eintr_allowed:
            return f"wrong: {total}"
        if seen["old" if patched else "new"]:
            return f"wrong: {seen} while patched is {patched}"
        return ""


class Successor(Crowd):
    """The same with a patch below that the killed engines replace; its functions answer as the original ones do."""

    name, steady = "better", False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder, self._first = folder, folder / "first.graft"
        for version, out, functions, more in (
            (1, self._first, [*PAIR_FUNCTIONS, "unused"], {}),
            (2, folder / "better.graft", PAIR_FUNCTIONS, {"replaces": ["pairs-2"]}),
        ):
            relocatable = forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o", f"-DVERSION={version}")
            forge.forge(
                self._program, relocatable, functions, out, name=self.name if version == 2 else "pairs-2", **more
            )
        self.bundle = str(folder / "better.graft")

    def begin(self) -> None:
        """Put the first patch in, if it or its successor is not."""
        (status,) = run(self._folder, op="status", pid=self.target.pid).events
        if not status["patches"]:
            outcome = run(self._folder, op="apply", pid=self.target.pid, bundle=str(self._first))
            assert outcome.code == 0, outcome


class RedisServer:
    """Redis 7.0.15 with four I/O threads and steady load, all on loopback."""

    name, steady = demo.NAME, False

    def __init__(self, folder: Path) -> None:
        self._source, self.bundle = redis.prepare(), str(demo.ensure())
        self._folder = folder
        if not (folder / "redis-load").exists():
            load_generator(folder)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        server = self._start([self._source.server, *options, "--io-threads", "4", "--io-threads-do-reads", "yes"])
        self.target = Target(server, self._source.server)
        self._wait_until_it_listens()
        load = [self._folder / "redis-load", f"--port={self._port}", "--connections=4", "--rate=200"]
        self._start([*load, "--seconds=3600", f"--out={self._folder}"])
        self._summary = self._folder / "summary.json"
        self._summary.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """Nothing."""

    def judge(self, *, patched: bool, eintr_allowed: int) -> str:  # noqa: ARG002 (Redis repeats such calls unseen)
        """Ask for the value that old and fixed code answer differently; the load must go on without an error."""
        try:
            answer = observable.answer(self._ask)
        except TimeoutError:
            return "stuck: no answer"
        except OSError as error:
            return f"wrong: {error}"
        if answer != (observable.FIXED if patched else observable.OLD):
            return f"wrong: {answer} while patched is {patched}"
        return self._judge_load()

    def _judge_load(self) -> str:
        first = self._counters()
        until = time.monotonic() + PATIENCE_S
        while (now := self._counters())["requests"] == first["requests"]:
            time.sleep(0.02)
            if time.monotonic() > until:
                return "stuck: the load does not go on"
        bad = {key: now[key] for key in ("errors", "wrong", "reconnects") if now[key]}
        return f"wrong: {bad}" if bad else ""

    def _counters(self) -> dict[str, int]:
        until = time.monotonic() + PATIENCE_S
        while not self._summary.exists() and time.monotonic() < until:
            time.sleep(0.02)
        counters: dict[str, int] = json.loads(self._summary.read_text())
        return counters

    def _start(self, command: list[object]) -> "subprocess.Popen[str]":
        quiet = subprocess.DEVNULL
        child = subprocess.Popen([str(word) for word in command], stdin=quiet, stdout=quiet, text=True)
        self._stack.callback(child.wait)
        self._stack.callback(child.kill)
        return child

    def _wait_until_it_listens(self) -> None:
        until = time.monotonic() + 4 * PATIENCE_S
        while True:
            try:
                self._ask(["PING"], b"")
            except OSError:
                assert time.monotonic() < until, "redis-server does not listen"
                time.sleep(0.02)
            else:
                return

    def _ask(self, words: list[str], data: bytes) -> str:
        """Speak RESP as redis-cli does; `-x` means that the data is the last argument."""
        arguments = [word.encode() for word in words if word != "-x"] + ([data] if "-x" in words else [])
        request = b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments)
        with socket.create_connection(("127.0.0.1", self._port), PATIENCE_S) as connection:
            connection.sendall(request)
            return connection.makefile("rb").readline().decode().strip().lstrip("+-:")
