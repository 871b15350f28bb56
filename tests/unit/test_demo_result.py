"""The demo's judgement: it must see each promise that is broken."""

import dataclasses
import struct
from typing import Any

import pytest

from hack.demo import observable
from hack.demo.load import Load, describe
from hack.demo.result import Identity, Result, Server, Timeline, broken_promises

SUMMARY = '{"requests": 2, "errors": 0, "wrong": 0, "reconnects": 0}'
RECORDS = struct.pack("<QIHH", 1_500_000, 2_000, 0, 0) + struct.pack("<QIHH", 2_500_000, 4_000, 1, 0)
SAME = Identity("containerd://1", 0, 42)


def run(**changes: Any) -> Result:
    server = Server("redis-0", "node1", SAME, SAME, Load.read(RECORDS, SUMMARY))
    result = Result(
        timeline=Timeline(1, 2, 3, 4, 5, 6),
        servers=[server],
        patched="1/1",
        threads_total=7,
        threads_migrated=7,
        longest_hold_us=100.0,
        answers={"before": [observable.OLD], "patched": [observable.FIXED], "reverted": [observable.OLD]},
    )
    return dataclasses.replace(result, **changes)


def server(after: Identity = SAME, **counters: int) -> Server:
    load = Load.read(RECORDS, SUMMARY)
    return Server("redis-0", "node1", SAME, after, dataclasses.replace(load, counters={**load.counters, **counters}))


def test_a_run_as_promised_breaks_nothing() -> None:
    """The good run is the one that all others differ from."""
    assert broken_promises(run()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"patched": "0/1"}, "patched"),
        ({"threads_migrated": 6}, "threads migrated"),
        ({"threads_total": 0, "threads_migrated": 0}, "nothing was really patched"),
        ({"servers": [server(errors=1)]}, "errors"),
        ({"servers": [server(wrong=1)]}, "wrong"),
        ({"servers": [server(reconnects=1)]}, "reconnects"),
        ({"servers": [server(Identity("containerd://1", 1, 42))]}, "restarts"),
        ({"servers": [server(Identity("containerd://1", 0, 43))]}, "start time"),
        ({"answers": {"before": ["0"], "patched": ["0"], "reverted": ["0"]}}, "when patched"),
        ({"answers": {"before": ["0"], "patched": [observable.FIXED]}}, "when reverted"),
    ],
)
def test_each_broken_promise_is_seen(changes: dict[str, Any], word: str) -> None:
    """One thing that is not as promised gives a sentence that names it."""
    assert any(word in sentence for sentence in broken_promises(run(**changes)))


def test_records_are_read_up_to_the_last_whole_one() -> None:
    """The generator writes while we read: half a record is not there yet."""
    load = Load.read(RECORDS + RECORDS[:7], SUMMARY)
    assert load.latency.tolist() == [2.0, 4.0]
    assert load.due.tolist() == [1.5, 2.5]


def test_a_phase_counts_its_own_requests_only() -> None:
    """Latencies of a phase are those of the requests that were due in it."""
    load = Load.read(RECORDS, SUMMARY)
    assert describe([load], 1.0, 2.0).longest == 2.0
    assert describe([load], 1.0, 3.0).count == 2
    assert describe([load], 5.0, 6.0).count == 0


def test_the_broken_value_is_one_register_too_many() -> None:
    """XZERO over 16384 registers and a VAL: the bytes that hyperloglog.c reads beyond its registers."""
    assert b"HYLL" + bytes([1] + [0] * 11) + b"\x7f\xff\x80" == observable.BROKEN
