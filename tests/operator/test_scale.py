"""The small form of `make scale`: ten nodes, a hundred pods, and an operator that is killed half-way."""

from pathlib import Path

from apiserver import Api

from bench.scale.fleet import Fleet
from bench.scale.phases import restarted
from bench.scale.theatre import Stage


def test_a_small_fleet(api: Api, tmp_path: Path) -> None:
    """Agents of their own code and rights patch every pod once, though the operator is killed half-way."""
    stage = Stage(api, Fleet("small-fleet", 10, 10), tmp_path, patience=120)
    with stage.agents(stage.build(), 1):
        cost = restarted(stage, {})
    stage.reset("again")
    made = cost["requests"]
    assert cost["curve"][-1][1] == 100
    assert cost["curve"][-1][0] > cost["killed at"] > 0
    assert made["PATCH nodepatches/status"] >= 10, "agents have rights of their own"
    assert not [kind for kind in made if "(403)" in kind or "(422)" in kind], made
    assert made.get("PATCH nodepatches", 0) + made["POST nodepatches"] <= 200, "work is given once, some pods at a time"
