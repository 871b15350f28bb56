"""The API server with the chart's roles, and an operator process that runs with nothing but them."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from apiserver import Api, api_server, free_port, listens, running
from installed import SYSTEM, Start, account_token, install
from stage import KEY, NEXT_KEY, Cluster, wait, write_trust


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        install(server)
        yield server


@pytest.fixture(scope="session")
def operator_config(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the rights of the chart's operator account and no other."""
    mine = Api(api.url, api.ca, account_token(api, "podgraft-operator"))
    return mine.kubeconfig(tmp_path_factory.mktemp("operator") / "kubeconfig")


@pytest.fixture(scope="session")
def trust_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trusted keys, as the chart mounts it."""
    return write_trust(tmp_path_factory.mktemp("trust"), KEY, NEXT_KEY)


@pytest.fixture(scope="session")
def prometheus_url() -> str:
    """The one Prometheus server that operators may ask; a test that needs it starts it."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def start_operator(
    operator_config: Path, trust_dir: Path, prometheus_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Return a function that runs an operator while its block lasts."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    environment = os.environ | {
        "PODGRAFT_PROMETHEUS_URLS": prometheus_url,
        "KUBECONFIG": str(operator_config),
        "PODGRAFT_NAMESPACE": SYSTEM,
        "PODGRAFT_AGENT_SECONDS": "6",
        "PODGRAFT_REVERT_SECONDS": "10",
        "PODGRAFT_TICK_SECONDS": "1",
        "PODGRAFT_RESYNC_SECONDS": "5",
        "PODGRAFT_LIVENESS_PORT": str(free_port()),
        "PODGRAFT_TRUST_DIR": str(trust_dir),
        "PODGRAFT_METRICS_PORT": str(free_port()),
    }

    @contextlib.contextmanager
    def start() -> Iterator[subprocess.Popen[bytes]]:
        command: list[str | Path] = [Path(sys.executable).parent / "podgraft-operator"]
        try:
            with running(command, log, env=environment) as process:
                process.liveness_port = environment["PODGRAFT_LIVENESS_PORT"]  # type: ignore[attr-defined]
                process.metrics_port = environment["PODGRAFT_METRICS_PORT"]  # type: ignore[attr-defined]
                process.log = log  # type: ignore[attr-defined]
                # A busy machine takes its time for that; tests count from here.
                wait(lambda: listens(environment["PODGRAFT_LIVENESS_PORT"]), "the operator is up", 60)
                yield process
                assert process.poll() in {None, -9}, "the operator died by itself"
        finally:
            sys.stdout.write(log.read_text("utf-8"))  # pytest shows it when the test fails

    return start


@pytest.fixture(scope="module")
def operator(start_operator: Start) -> Iterator["subprocess.Popen[bytes]"]:
    """One operator for a module: it has to keep the tests' namespaces apart, as it has those of users."""
    with start_operator() as process:
        yield process


@pytest.fixture
def cluster(api: Api, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A namespace of its own, and nodes of its own names."""
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].rstrip("-")
    one = Cluster(api, name)
    api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    yield one
    one.remove()
