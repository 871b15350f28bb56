"""The benchmarks' pages are made from what was recorded; nothing is measured here."""

import json

import numpy as np

from bench import report
from bench.harness import goal
from bench.latency import Interval, charged, summarize
from hack.demo.load import RECORD
from hack.tools import REPOSITORY

RESULTS = REPOSITORY / "docs" / "bench" / "results.json"


def test_the_page_in_the_tree_is_what_the_recorded_results_say() -> None:
    """All benchmarks are recorded, and nobody has edited the page by hand."""
    results = json.loads(RESULTS.read_text())
    assert set(results) == set(report.BENCHMARKS)
    assert report.page(results) == (RESULTS.parent / "README.md").read_text()


def test_a_missed_goal_says_by_how_much() -> None:
    """A value at the limit is good enough, one beyond it is not."""
    assert "**met**" in goal("hold", 100.0, 100.0, " µs")
    assert "**missed** by 50 %" in goal("hold", 150.0, 100.0, " µs")


def test_requests_that_a_broken_connection_kept_back_are_charged() -> None:
    """A server that is away for five intervals delays six requests: the one that was lost and the five never sent."""
    interval = 1_000
    rows = [
        (10_000, 100, 0, 0),
        (11_000, 5, 0, 1),  # lost at once, which must not look like a quick answer
        (18_000, 100, 0, 2),  # sent one interval after the connection was back
        (10_500, 100, 1, 0),  # another connection, which was never lost
        (18_500, 100, 1, 0),
    ]
    due, latency = charged(np.array(rows, RECORD), interval)
    seen = sorted(zip(due.tolist(), latency.tolist(), strict=True))
    answered = [(row[0], 0.1) for row in rows if row[1] == 100]
    assert seen == sorted([*answered, *((11_000 + n * interval, 6.0 - n) for n in range(6))])


def test_calm_intervals_stand_beside_all_of_them() -> None:
    """What the hypervisor took in one interval is in the percentile over everything, not in that of the calm ones."""
    second = 1_000_000
    rows = [(turn * 1000, 100, 0, turn) for turn in range(2000)]
    rows += [(2 * second + turn * 1000, 5000, 0, 2000 + turn) for turn in range(2000)]
    intervals = [Interval("quiet", 0.0, 2.0, 0.0), Interval("quiet", 2.0, 4.0, 1.0)]
    seen = summarize(np.array(rows, RECORD), intervals, seed=1)["kinds"]["quiet"]
    assert (seen["shown"][2], seen["middle"]) == (5.0, 2.55)
    assert seen["calm"] == {"intervals": 1, "p99.9": 0.1}
    assert seen["stolen"] > 0
