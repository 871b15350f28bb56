"""redis-load against servers that misbehave: what it does not count, nobody sees."""

import json
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hack.images.contents import load_generator

Answer = Callable[[str, int], bytes | None]


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load")
    load_generator(folder)
    return folder / "redis-load"


class Honest:
    """A server that answers as Redis does to one connection."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.count = 0

    def __call__(self, line: str, turn: int) -> bytes:
        """Answer one request; `turn` counts requests over all connections."""
        assert turn > 0
        words = line.split()
        match words[0]:
            case "SET":
                self.values[words[1]] = words[2]
                return b"+OK\r\n"
            case "GET":
                value = self.values[words[1]]
                return f"${len(value)}\r\n{value}\r\n".encode()
            case "INCR":
                self.count += 1
                return f":{self.count}\r\n".encode()
            case "DEL":
                self.count = 0
                return b":0\r\n"
        return b":7\r\n"


def summary_with(binary: Path, folder: Path, answer: Answer) -> dict[str, int]:
    """Run one connection for a second against a server that answers with `answer`; None closes the connection."""
    turn = 0

    def serve() -> None:
        nonlocal turn
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, client.makefile("r", newline="\r\n") as lines:
                for line in lines:
                    turn += 1
                    reply = answer(line.strip(), turn)
                    if reply is None:
                        client.shutdown(socket.SHUT_RDWR)
                        break
                    client.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        port = str(listener.getsockname()[1])
        command = [binary, "--port", port, "--connections", "1", "--rate", "100", "--seconds", "1", "--out", folder]
        subprocess.run(command, check=False, capture_output=True, timeout=30)
    said: dict[str, int] = json.loads((folder / "summary.json").read_text())
    assert said["finished"]
    assert (folder / "records.bin").stat().st_size == 16 * said["requests"]
    return said


def test_right_answers_count_as_requests_alone(binary: Path, tmp_path: Path) -> None:
    """A server that does everything right has no errors."""
    said = summary_with(binary, tmp_path, Honest())
    assert said["requests"] > 50
    assert (said["errors"], said["wrong"], said["reconnects"]) == (0, 0, 0)


def test_a_wrong_answer_is_counted(binary: Path, tmp_path: Path) -> None:
    """A counter that jumps is wrong, although it is a valid answer."""
    right = Honest()
    said = summary_with(
        binary, tmp_path, lambda line, turn: b":99\r\n" if line.startswith("INCR") else right(line, turn)
    )
    assert said["wrong"] > 10
    assert said["errors"] == 0


def test_a_closed_connection_is_an_error_and_a_reconnect(binary: Path, tmp_path: Path) -> None:
    """The request that was lost is an error, and coming back is counted."""
    right = Honest()
    said = summary_with(binary, tmp_path, lambda line, turn: None if turn == 80 else right(line, turn))
    assert (said["errors"], said["reconnects"]) == (1, 1)
    assert said["requests"] > 50


def test_a_silent_server_is_charged_from_when_requests_were_due(binary: Path, tmp_path: Path) -> None:
    """A server that stands still for 300 ms shows about 30 late requests, not one."""
    right = Honest()

    def slow(line: str, turn: int) -> bytes:
        if turn == 80:
            threading.Event().wait(0.3)
        return right(line, turn)

    summary_with(binary, tmp_path, slow)
    records = (tmp_path / "records.bin").read_bytes()
    latencies = [int.from_bytes(records[at + 8 : at + 12], "little") for at in range(0, len(records), 16)]
    assert sum(latency > 50_000 for latency in latencies) >= 20
