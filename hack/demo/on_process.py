"""The demo with one process and the command line alone."""

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from hack.cluster.processes import start_time
from hack.demo import bundle, observable
from hack.demo.load import Load
from hack.demo.result import Identity, Result, Server, Timeline
from hack.images.contents import load_generator
from hack.sources import redis
from hack.tools import REPOSITORY, ToolFailedError, cache

PODGRAFT = REPOSITORY / ".venv" / "bin" / "podgraft"
BEFORE_SECONDS, PATCHED_SECONDS, AFTER_SECONDS = 6.0, 6.0, 5.0
LOAD_SECONDS = "120"


def play(console: Console) -> Result:
    """Patch and revert one Redis under load, by `podgraft apply` and `podgraft revert`."""
    source, file = redis.prepare(), bundle.ensure()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=cache())))
        port = _free_port()
        server = stack.enter_context(_running(_server_command(source.server, port, folder)))
        _wait_for(port)
        load_generator(folder)
        command = [str(folder / "redis-load"), f"--port={port}", "--connections=4", "--rate=100"]
        load = stack.enter_context(_running([*command, f"--seconds={LOAD_SECONDS}", f"--out={folder}"]))

        def ask() -> list[str]:
            return [observable.answer(lambda words, data: _redis_cli(source.client, port, words, data))]

        before = _identity(server)
        start, answers = time.time(), {"before": ask()}
        console.print(f"[bold]Before[/]: PFCOUNT of a broken value: {answers['before']}")
        time.sleep(BEFORE_SECONDS)
        console.print(f"\n[bold]podgraft apply --pid {server.pid} {file.name}[/]")
        apply = time.time()
        done = _podgraft(console, "apply", f"--pid={server.pid}", f"--trusted-key={bundle.public_key()}", str(file))
        applied, answers["patched"] = time.time(), ask()
        console.print(f"[bold]Patched[/]: PFCOUNT of a broken value: {answers['patched']}")
        time.sleep(PATCHED_SECONDS)
        console.print(f"\n[bold]podgraft revert --pid {server.pid} {bundle.NAME}[/]")
        delete = time.time()
        undone = _podgraft(console, "revert", f"--pid={server.pid}", bundle.NAME)
        reverted, answers["reverted"] = time.time(), ask()
        console.print(f"[bold]Reverted[/]: PFCOUNT of a broken value: {answers['reverted']}")
        time.sleep(AFTER_SECONDS)
        end, after = time.time(), _identity(server)
        # It writes its last records and its summary before it ends.
        load.terminate()
        load.wait(30)
        recorded = Load.read((folder / "records.bin").read_bytes(), (folder / "summary.json").read_text())
    return Result(
        timeline=Timeline(start, apply, applied, delete, reverted, end),
        servers=[Server("redis-server", "here", before, after, recorded)],
        patched="1/1" if done[-1]["event"] == "finalized" else "0/1",
        threads_total=done[-1].get("threads", 0),
        threads_migrated=sum(done[-1].get("how", {}).values()),
        longest_hold_us=max((_longest_hold(events) for events in (done, undone)), default=0.0),
        answers=answers,
    )


def _server_command(binary: Path, port: int, folder: Path) -> list[str]:
    options = {"--port": str(port), "--bind": "127.0.0.1", "--save": "", "--dir": str(folder), "--io-threads": "4"}
    return [str(binary), *(word for option in options.items() for word in option), "--io-threads-do-reads", "yes"]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _wait_for(port: int, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise ToolFailedError(f"redis-server does not listen on port {port}") from None
            time.sleep(0.05)
        else:
            return


def _redis_cli(client: Path, port: int, words: list[str], data: bytes) -> str:
    return subprocess.run(
        [client, "-p", str(port), *words], input=data, capture_output=True, check=True
    ).stdout.decode()


def _identity(server: subprocess.Popen[bytes]) -> Identity:
    return Identity(container="none", restarts=0, start_time=start_time(server.pid) or 0)


def _podgraft(console: Console, *arguments: str) -> list[dict[str, Any]]:
    """Run a podgraft command, print its events as they come, return them.

    Raises:
        ToolFailedError: it did not end with exit code 0.
    """
    events = []
    with subprocess.Popen([PODGRAFT, *arguments, "--json"], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None  # noqa: S101 # asked for above
        for line in child.stdout:
            event = json.loads(line)
            events.append(event)
            console.print(f"  {_sentence(event)}", highlight=False)
    if child.returncode != 0 or not events:
        raise ToolFailedError(f"podgraft {arguments[0]} ended with {child.returncode}")
    return events


def _sentence(event: dict[str, Any]) -> str:
    if event["event"] == "migrated":
        count = f"{event['migrated']}/{event['total']}"
        return f"migrated {count}: {event['name']} ({event['how']}, held {event['held_us']:.0f} µs)"
    shown = {key: value for key, value in event.items() if isinstance(value, int | float | str) and key != "event"}
    return f"{event['event']} " + " ".join(f"{key}={value}" for key, value in shown.items())


def _longest_hold(events: list[dict[str, Any]]) -> float:
    holds = [event.get(key) for event in events for key in ("held_us", "max_held_us", "carrier_held_us")]
    return max((float(hold) for hold in holds if hold is not None), default=0.0)
