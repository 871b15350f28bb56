"""The Argo CD example, run by the Lua that Argo CD speaks (5.1)."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from podgraft_api.livepatch import LivePatchStatus
from podgraft_api.progress import RESUME, REVERT
from podgraft_operator.verdict import Verdict

FOLDER = Path(__file__).parents[2] / "examples/argocd"
SETTINGS = yaml.safe_load((FOLDER / "argocd-cm.yaml").read_text("utf-8"))["data"]
Json = dict[str, Any]


def run(script: str, obj: Json) -> Any:
    """Run a script as Argo CD does: with the object as `obj`, for what it returns."""
    lua = LuaRuntime()
    lua.globals().obj = lua.table_from(obj, recursive=True)
    return lua.execute(script)


def live_patch(verdict: Verdict, observed: int = 3) -> Json:
    status = LivePatchStatus(observed_generation=observed, conditions=tuple(verdict.conditions(observed)))
    return {"metadata": {"generation": 3}, "status": status.wire()}


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict("Ready", "Patched", "3 of 3 pods patched"), "Healthy"),
        (Verdict("Reconciling", "Progressing", "1 of 3"), "Progressing"),
        (Verdict("Reconciling", "StepPaused", "until somebody resumes"), "Suspended"),
        (Verdict("Reconciling", "Paused", "2 pods wait"), "Suspended"),
        (Verdict("Stalled", "PodNotReady", "redis-0"), "Degraded"),
    ],
)
def test_health(verdict: Verdict, expected: str) -> None:
    """Each condition has its health, with reason and message."""
    health = run((FOLDER / "health.lua").read_text("utf-8"), live_patch(verdict))
    assert (health["status"], health["message"]) == (expected, f"{verdict.reason}: {verdict.message}")


@pytest.mark.parametrize(
    "obj",
    [
        {"metadata": {"generation": 1}},
        {"metadata": {"generation": 1}, "status": {"observedGeneration": -1}},
        live_patch(Verdict("Ready", "Patched", ""), observed=2),
    ],
)
def test_health_waits_for_the_operator(obj: Json) -> None:
    """Before the operator has seen a spec, nothing old counts."""
    assert run((FOLDER / "health.lua").read_text("utf-8"), obj)["status"] == "Progressing"


def test_settings_hold_the_script() -> None:
    """The ConfigMap has the very text of health.lua."""
    script = SETTINGS["resource.customizations.health.podgraft.dev_LivePatch"]
    assert script == (FOLDER / "health.lua").read_text("utf-8")


def test_actions_ask_by_annotation() -> None:
    """The buttons set the annotations that the operator looks for."""
    actions = yaml.safe_load(SETTINGS["resource.customizations.actions.podgraft.dev_LivePatch"])
    assert set(run(actions["discovery.lua"], {})) == {"resume", "revert"}
    keys = {"resume": RESUME, "revert": REVERT}
    for one in actions["definitions"]:
        obj = run(one["action.lua"], {"metadata": {"name": "fix"}})
        assert str(obj["metadata"]["annotations"][keys[one["name"]]]).startswith("20")
