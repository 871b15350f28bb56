"""docs/scale.md is made from what was recorded; nothing is measured here."""

import json

from bench.scale import report
from hack.tools import REPOSITORY

DOCS = REPOSITORY / "docs"


def test_the_page_in_the_tree_is_what_the_recorded_results_say() -> None:
    """Nobody has edited the page by hand, and every size has an apply."""
    results = json.loads((DOCS / "scale" / "results.json").read_text())
    assert all(one["apply"]["curve"][-1][1] == one["pods"] for one in results.values())
    assert report.page(results) == (DOCS / "scale.md").read_text()


def test_requests_of_the_measurement_are_not_ours() -> None:
    """What polls the LivePatch, and what the API server does for itself, is left out."""
    made = {"GET livepatches": 9, "PUT leases": 3, "PATCH nodepatches": 2, "PATCH nodepatches/status": 4}
    assert report.ours({"requests": made}).total() == 6
