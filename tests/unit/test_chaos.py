"""What the chaos run counts, what it excuses, and what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from hack.chaos import page
from hack.chaos.excuses import Excuses
from hack.demo.load import RECORD
from hack.fleet import ledger


def test_an_end_excuses_one_request_of_each_connection() -> None:
    """A fifth failure, one at another time and one in another pod are failures."""
    excuses = Excuses()
    excuses.add("a", 100.0)
    excused, left = excuses.split({"a": [99.5, 100.1, 100.2, 100.3, 100.4, 300.0], "b": [100.1]})
    assert excused == 4
    assert left == [("a", 100.4), ("a", 300.0), ("b", 100.1)]


def test_each_end_excuses_its_own() -> None:
    """Two ends of one server excuse two requests of each connection."""
    excuses = Excuses()
    excuses.add("a", 100.0)
    excuses.add("a", 120.0)
    assert excuses.split({"a": [100.1] * 4 + [120.1] * 4}) == (8, [])


def run(minutes: float, killed: int) -> page.Run:
    return page.Run(minutes, 3, 2, 9.6, {"operator killed": killed, "scaled": 1}, (("stuck", "0"),))


def test_a_run_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """What people wrote stays, of two runs the last one is told, and a short one is not."""
    file = tmp_path / "chaos.md"
    file.write_text("# Chaos\n\nText.\n")
    page.write(run(30, killed=4), file)
    page.write(run(45, killed=6), file)
    told = file.read_text()
    page.write(run(5, killed=1), file)
    assert file.read_text() == told
    assert told.startswith("# Chaos\n\nText.\n\n## The last run\n\n`make chaos MINUTES=45 SEED=3`, on 2 processors")
    assert "| operator killed | 6 |\n| scaled | 1 |\n| all | 7 |\n" in told
    assert "operator killed | 4" not in told
    assert told.endswith("| stuck | 0 |\n")


def told(folder: Path, flags: list[int], wrong: int) -> None:
    """Let a load generator of a pod have written this much."""
    folder.mkdir(parents=True, exist_ok=True)
    made = np.zeros(len(flags), RECORD)
    made["flags"] = flags
    (folder / "records.bin").write_bytes(made.tobytes())
    (folder / "summary.json").write_text(json.dumps({"wrong": wrong}))


def test_what_earlier_pods_met_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster that was kept, records of pods of earlier runs lie beside ours; only what comes is ours."""
    monkeypatch.setattr(ledger, "records", lambda node: tmp_path / str(node))
    told(tmp_path / "1" / "earlier", [0, ledger.FAILED], wrong=2)
    counted = ledger.Ledger.from_now()
    told(tmp_path / "2" / "ours", [0, 0, ledger.FAILED], wrong=1)
    counted.collect()
    assert (counted.requests, counted.wrong) == (3, 1)
    assert counted.failures == {"ours": [0.0]}
