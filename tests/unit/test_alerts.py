"""The alert rules: promtool reads them, and each fires when it should and not before."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "charts/podgraft/monitoring"
RULES = MONITORING / "alerts.yaml"


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not there; hack/install-packages installs it with the package prometheus")
    done = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_are_rules() -> None:
    """Prometheus accepts every expression and template."""
    count = sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert f"{count} rules found" in promtool("check", "rules", RULES)


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Series that mean trouble raise their alert after its time; series that do not raise none."""
    script = (Path(__file__).parent / "alerts_test.yaml").read_text().replace("RULES", str(RULES))
    (tmp_path / "test.yaml").write_text(script)
    promtool("test", "rules", tmp_path / "test.yaml")


def test_every_alert_says_what_to_do() -> None:
    """An alert has a severity, a summary, and a sentence that helps."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
            assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
