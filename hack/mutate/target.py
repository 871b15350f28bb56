"""What is edited and how it is asked: Redis here; the tests bring a small program of their own."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hack.mutate.commands import COMMANDS
from hack.sources import redis

START_SECONDS, ANSWER_SECONDS = 60.0, 20.0
FILES = {
    "src/t_string.c": r"\w+",
    "src/t_list.c": r"\w+",
    "src/t_set.c": r"\w+",
    "src/t_hash.c": r"\w+",
    "src/t_zset.c": r"\w+",
    "src/bitops.c": r"\w+",
    "src/hyperloglog.c": r"(hll|pf)\w+",
    "src/geo.c": r"\w+",
    "src/sort.c": r"\w+",
}
# Redis' makefile adds these to its own.
SANITIZED = "SANITIZER=address REDIS_CFLAGS=-ftrivial-auto-var-init="
Ask = Callable[[], list[str]]


@dataclass(frozen=True)
class Target:
    """source: the tree. built: the same, built in place. build, binary: as for `podgraft build`. running: what runs.

    sanitized: as build, but with AddressSanitizer; two builds, whose automatic variables begin with other values.
    files: file -> pattern of the functions to edit. extra: see `editor.edit`. start: a process with more in its
    environment, and a function that plays the probe from its beginning and returns all answers.
    """

    source: Path
    built: Path
    build: str
    sanitized: tuple[str, str]
    binary: str
    running: Path
    files: dict[str, str]
    extra: str
    start: Callable[
        [Path, Path, Mapping[str, str]], contextlib.AbstractContextManager[tuple[subprocess.Popen[bytes], Ask]]
    ]


def redis_target() -> Target:
    """Return Redis, as the demo patches it."""
    made = redis.prepare()
    extra = "if (VALUE % 3 == 0 && c->argc > 1) { addReplyLongLong(c, VALUE); return; }"
    sanitized = f"{redis.BUILD} {SANITIZED}zero", f"{redis.BUILD} {SANITIZED}pattern"
    return Target(made.tree, made.built, redis.BUILD, sanitized, redis.BINARY, made.server, FILES, extra, start_redis)


@contextmanager
def start_redis(binary: Path, folder: Path, env: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Ask]]:
    """Start a server that listens on a socket in the folder alone."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    words: list[str | Path] = [binary, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder, "--hz", "1"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, stdout=quiet, stderr=quiet, env={**os.environ, **env}) as child:
        try:
            _wait(child, path)
            yield child, lambda: _probe(path)
        finally:
            child.kill()


def _wait(child: subprocess.Popen[bytes], path: Path) -> None:
    """Wait until the server takes a connection: the file is there a moment earlier."""
    until = time.monotonic() + START_SECONDS
    while child.poll() is None and time.monotonic() < until:
        with (
            contextlib.suppress(FileNotFoundError, ConnectionRefusedError),
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.connect(os.fspath(path))
            return
        time.sleep(0.05)
    raise TimeoutError(f"{child.args!r} does not listen")


def _probe(path: Path) -> list[str]:
    """Send each command and keep each answer; a server that is gone or hangs ends the list with that."""
    answers: list[str] = []
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(os.fspath(path))
            with connection.makefile("rb") as stream:
                for command in COMMANDS:
                    connection.sendall(encode(command))
                    # The mark separates the answers, whatever number of them an edited server gives.
                    connection.sendall(encode(("ECHO", "--mark--")))
                    answers.append(_until_mark(stream.readline))
        except TimeoutError:
            answers.append("no answer")
        except (OSError, EOFError):
            answers.append("gone")
    return answers


def encode(words: tuple[str, ...]) -> bytes:
    """Return a command as the server reads it (Redis serialization protocol, arrays of bulk strings)."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)


def _until_mark(read: Callable[[], bytes]) -> str:
    lines: list[bytes] = []
    while lines[-2:] != [b"$8\r\n", b"--mark--\r\n"]:
        line = read()
        if not line:
            raise EOFError
        lines.append(line)
    return b"".join(lines[:-2]).decode(errors="backslashreplace")
