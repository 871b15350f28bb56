"""The health gate asks a real Prometheus server."""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apiserver import running
from stage import Cluster, make_graft, wait

from podgraft_api.progress import RESUME

pytestmark = pytest.mark.usefixtures("operator")
# Up is 1 for a target that answers; the server watches itself, and one address where nobody is.
CONFIG = """
global: {scrape_interval: 1s}
scrape_configs:
  - {job_name: itself, static_configs: [{targets: ["%s"]}]}
  - {job_name: nobody, static_configs: [{targets: ["127.0.0.1:1"]}]}
"""


@pytest.fixture
def prometheus(prometheus_url: str, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Return a function that starts the server and waits until it has seen its targets."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed; hack/install-packages does")
    address = prometheus_url.removeprefix("http://")
    (tmp_path / "config.yaml").write_text(CONFIG % address, "utf-8")
    options = ["--config.file", tmp_path / "config.yaml", "--storage.tsdb.path", tmp_path / "data"]
    command = [program, *options, f"--web.listen-address={address}"]

    def seen() -> bool:
        try:
            with urllib.request.urlopen(  # noqa: S310 - ours, on loopback
                f"{prometheus_url}/api/v1/query?query=up", timeout=5
            ) as answer:
                return len(json.load(answer)["data"]["result"]) == 2
        except (urllib.error.URLError, ConnectionError):
            return False

    with running(command, tmp_path / "prometheus.log"):
        wait(seen, "Prometheus has seen its targets", 60)
        yield seen


def fleet(cluster: Cluster, url: str, **query: Any) -> None:
    cluster.add_config_map(make_graft())
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
    health = {"prometheus": {"url": url} | query}
    cluster.apply(strategy={"steps": [{"pods": 1}], "health": health})
    cluster.wait_items(0)
    cluster.answer(0)


@pytest.mark.usefixtures("prometheus")
def test_metric_opens_and_shuts_the_gate(cluster: Cluster, prometheus_url: str) -> None:
    """A value outside of the limits stops the rollout with its value; inside, it goes on to the end."""
    fleet(cluster, prometheus_url, query='up{job="nobody"}', atLeast=1)
    message = cluster.wait_condition("Stalled", "MetricOutOfBounds")["message"]
    assert 'up{job="nobody"} is 0, wanted at least 1' in message
    assert cluster.items(1) == []
    query = {"query": 'up{job="itself"}', "atLeast": 1}
    cluster.edit(strategy={"health": {"prometheus": query}})
    cluster.annotate(RESUME, "now")
    cluster.wait_items(1)
    cluster.answer(1)
    cluster.wait_condition("Ready", "Patched", seconds=30)


def test_no_answer_is_a_failed_gate(cluster: Cluster, prometheus_url: str) -> None:
    """A server that is away is asked again, and then the gate has failed; nothing was begun meanwhile."""
    fleet(cluster, prometheus_url, query="up", atLeast=1)
    cluster.wait_condition("Reconciling", "WaitingForHealth")
    cluster.wait_condition("Stalled", "PrometheusNotAnswering", seconds=45)
    assert cluster.items(1) == []


def test_other_address_is_not_asked(cluster: Cluster) -> None:
    """An address that the operator's settings do not name gets no request."""
    fleet(cluster, "http://127.0.0.1:9", query="up", atLeast=1)
    assert "operator.prometheusUrls" in cluster.wait_condition("Stalled", "PrometheusNotAllowed")["message"]
    time.sleep(1)
    assert cluster.items(1) == []
