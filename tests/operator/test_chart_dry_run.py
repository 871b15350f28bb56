"""The API server accepts everything that the chart renders, admission and defaults included."""

import subprocess
from pathlib import Path

import pytest
from apiserver import Api
from installed import ROOT, SYSTEM, helm
from test_schema import kubectl


@pytest.mark.parametrize(
    "values",
    [
        "agent.privileged=true",
        "agent.privileged=false,agent.readSeccompFilters=true,rbac.aggregate=true",
        "imagePullSecrets[0].name=a,registries.ca=PEM,registries.insecure={a.example:5000},trust.allowUnsigned=true",
    ],
)
def test_server_side_dry_run(api: Api, tmp_path: Path, values: str) -> None:
    """`kubectl apply --dry-run=server` takes the whole chart with strict validation, and warns of nothing."""
    command = [helm(), "template", "podgraft", ROOT / "charts/podgraft", "--namespace", SYSTEM, "--include-crds"]
    rendered = subprocess.run(
        [*command, "--kube-version", "1.34.0", "--set", values], check=True, capture_output=True, text=True
    ).stdout
    options = ["--dry-run=server", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-"]
    done = kubectl(api, tmp_path, "apply", *options, given=rendered)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "daemonset.apps/podgraft-agent serverside-applied (server dry run)" in done.stdout
