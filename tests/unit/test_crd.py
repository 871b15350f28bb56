"""The CRDs are the models."""

from pathlib import Path

import pytest
import yaml

from podgraft_api import crd
from podgraft_api.livepatch import LivePatchSpec, LivePatchStatus
from podgraft_api.structural import structural

ROOT = Path(__file__).parents[2]


def test_generated_files_are_up_to_date() -> None:
    """crds/ holds what the models say; run `python -m podgraft_api.crd` when this fails."""
    assert crd.main(["--check", str(ROOT / "crds")]) == 0
    assert {path.name for path in (ROOT / "crds").iterdir()} == crd.render().keys()


def test_chart_has_the_same_files() -> None:
    """The chart installs exactly these CRDs."""
    chart = ROOT / "charts/podgraft/crds"
    assert {path.name: path.read_text("utf-8") for path in chart.iterdir()} == crd.render()


def test_check_sees_a_difference(tmp_path: Path) -> None:
    """--check fails for a changed file and writes nothing; a run without it repairs the file."""
    crd.main([str(tmp_path)])
    changed = next(tmp_path.iterdir())
    changed.write_text("other", "utf-8")
    assert crd.main(["--check", str(tmp_path)]) == 1
    assert changed.read_text("utf-8") == "other"
    crd.main([str(tmp_path)])
    assert crd.main(["--check", str(tmp_path)]) == 0


def test_schema_is_structural() -> None:
    """Nothing that the API server forbids is in a schema (it would refuse the CRD as a whole)."""
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "const"}

    def look(node: object, where: str) -> None:
        if isinstance(node, dict):
            if not where.endswith("properties"):
                assert not forbidden & node.keys(), where
                assert not ("properties" in node and "additionalProperties" in node), where
            for key, value in node.items():
                look(value, f"{where}.{key}")

    for text in crd.render().values():
        look(yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "")


def test_union_without_structural_form_is_an_error() -> None:
    """A model that cannot be expressed fails at generation, not in a cluster."""
    with pytest.raises(ValueError, match="no structural form"):
        structural({"anyOf": [{"type": "string"}, {"type": "object"}]})


def test_status_default_makes_kstatus_wait() -> None:
    """Until the operator has spoken, the observed generation is -1."""
    for text in crd.render().values():
        schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert schema["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_spec_refuses_what_it_does_not_know() -> None:
    """Unknown fields of a spec are errors, those of a status are ignored: it is no order."""
    spec = {"bundle": {"inline": "QUJD"}, "selector": {"matchLabels": {"a": "b"}}}
    with pytest.raises(ValueError, match="Extra inputs"):
        LivePatchSpec.model_validate(spec | {"stratgy": {}})
    assert LivePatchStatus.model_validate({"later": 1}).observed_generation == -1
