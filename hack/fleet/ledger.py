"""Every request that the load generators of all pods made, read from the nodes' disks while they write."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from hack.cluster.layout import NODES
from hack.demo.load import RECORD
from hack.fleet.shop import records

FAILED = 1


@dataclass
class _Book:
    """One pod. read: bytes taken; wrong: as the running generator counts, and those of generators before it."""

    read: int = 0
    wrong: int = 0
    wrong_before: int = 0


@dataclass
class Ledger:
    """Requests and failures. failures: when they were due (seconds since the epoch), by pod."""

    requests: int = 0
    failures: dict[str, list[float]] = field(default_factory=dict)
    _books: dict[str, _Book] = field(default_factory=dict)
    _wrong_at_start: int = 0

    @classmethod
    def from_now(cls) -> Self:
        """Return a ledger of what comes: records that are there already belong to an earlier run."""
        ledger = cls()
        ledger.collect()
        ledger.requests, ledger._wrong_at_start = 0, ledger.wrong
        ledger.failures.clear()
        return ledger

    def collect(self) -> None:
        """Take in what is new; call it before a node is switched off, for a new generator begins a new file."""
        for node in NODES:
            for folder in records(node).glob("*"):  # which is empty where there is no such folder yet
                self._read(folder)

    @property
    def wrong(self) -> int:
        """Answers that were not what they must be; no disruption excuses one."""
        return sum(book.wrong + book.wrong_before for book in self._books.values()) - self._wrong_at_start

    def _read(self, folder: Path) -> None:
        file, book = folder / "records.bin", self._books.setdefault(folder.name, _Book())
        if not file.exists():
            return
        if file.stat().st_size < book.read:
            book.read, book.wrong_before, book.wrong = 0, book.wrong_before + book.wrong, 0
        with file.open("rb") as stream:
            stream.seek(book.read)
            data = stream.read()
        whole = np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)
        book.read += whole.nbytes
        self.requests += len(whole)
        failed = whole["due_us"][(whole["flags"] & FAILED) != 0] / 1e6
        if failed.size:
            self.failures.setdefault(folder.name, []).extend(map(float, failed))
        summary = folder / "summary.json"
        if summary.exists():
            book.wrong = int(json.loads(summary.read_text())["wrong"])
