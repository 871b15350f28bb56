"""What every script under hack/ needs: the cache folder, commands that fail loudly, steps that show their time."""

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TICK_SECONDS = 20.0


class ToolFailedError(Exception):
    """A step of the build or the cluster did not work; the text says what was seen and where the log is."""


def cache() -> Path:
    """Return the one folder for everything that is built once (PODGRAFT_CACHE, else ~/.cache/podgraft)."""
    folder = Path(os.environ.get("PODGRAFT_CACHE") or Path.home() / ".cache" / "podgraft").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(text: str) -> None:
    """Print one line of progress; stdout is left to what a caller may want to capture."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Announce a step, remind of it while it lasts, and say how long it took."""
    began, done = time.monotonic(), threading.Event()

    def remind() -> None:
        while not done.wait(TICK_SECONDS):
            say(f"  … {what} ({time.monotonic() - began:.0f} s)")

    reminder = threading.Thread(target=remind, daemon=True)
    reminder.start()
    try:
        yield
    except BaseException:
        say(f"  ✗ {what} ({time.monotonic() - began:.1f} s)")
        raise
    else:
        say(f"  ✓ {what} ({time.monotonic() - began:.1f} s)")
    finally:
        done.set()
        reminder.join()


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: str | None = None,
) -> str:
    """Run a command to its end and return its stdout; with `log`, stdout and stderr go to that file instead.

    Raises:
        ToolFailedError: non-zero exit; the text has the last lines that the command wrote.
    """
    environment = {**os.environ, **(env or {})}
    words = [str(word) for word in command]
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("w")) if log else subprocess.PIPE
        error = subprocess.STDOUT if log else subprocess.PIPE
        result = subprocess.run(
            words, cwd=cwd, env=environment, input=stdin, stdout=out, stderr=error, text=True, check=False
        )
    if result.returncode != 0:
        seen = log.read_text() if log else (result.stderr or result.stdout)
        tail = "\n    ".join(seen.strip().splitlines()[-15:])
        where = f"; whole log: {log}" if log else ""
        raise ToolFailedError(f"`{' '.join(words)}` ended with {result.returncode}{where}\n    {tail}")
    return result.stdout or ""


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock of this machine's user: two builds of the same thing would only be in each other's way."""
    with (cache() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  … waiting for another process that works on {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest_of(*parts: str | bytes | Path) -> str:
    """Return 16 hex digits that change when a text, a file, or any file below a folder changes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(file for file in part.rglob("*") if _counts(file)) if part.is_dir() else [part]
            for file in files:
                total.update(f"{file.relative_to(part)}\0{file.stat().st_mode & 0o777}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
        else:
            data = part.encode() if isinstance(part, str) else part
            total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def _counts(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def unwind_on_signals() -> None:
    """Let signals that end us unwind the stack first: a process that was started must not stay behind.

    SIGINT is ignored by what a shell has put into the background, and so it is asked for as well.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda came, _frame: sys.exit(128 + came))


def main(action: Callable[[], None]) -> None:
    """Run a script's entry point; a ToolFailedError ends it with its text and exit code 1."""
    unwind_on_signals()
    try:
        action()
    except ToolFailedError as failure:
        say(f"error: {failure}")
        sys.exit(1)
