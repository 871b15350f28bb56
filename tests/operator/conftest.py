"""The API server with the chart's roles, and an operator process that runs with nothing but them."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from apiserver import Api, api_server, free_port, running

from cluster import Cluster, wait

ROOT = Path(__file__).parents[2]
SYSTEM = "podgraft-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "ServiceAccount": f"/api/v1/namespaces/{SYSTEM}/serviceaccounts",
    "Role": f"{RBAC}/namespaces/{SYSTEM}/roles",
    "RoleBinding": f"{RBAC}/namespaces/{SYSTEM}/rolebindings",
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": ("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"),
}


def helm() -> str:
    """Return helm from HELM or the PATH; skip without it."""
    found = os.environ.get("HELM", "helm")
    try:
        subprocess.run([found, "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("helm is not there; set HELM")
    return found


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as server:
        install(server)
        yield server


def install(api: Api) -> None:
    """Install what the chart installs, but for the workloads: there are no nodes to run them."""
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", yaml.safe_load(file.read_text()))
    api.create("/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
    rendered = subprocess.run(
        [helm(), "template", "podgraft", ROOT / "charts/podgraft", "--namespace", SYSTEM, "--kube-version", "1.34.0"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for body in filter(None, yaml.safe_load_all(rendered)):
        if body["kind"] in PATHS:
            api.create(PATHS[body["kind"]], body)
    wait(lambda: api.exists("/apis/podgraft.dev/v1alpha1/livepatches"), "the CRDs are served")
    wait(lambda: api.exists("/apis/podgraft.dev/v1alpha1/nodepatches"), "the CRDs are served")


def account_token(api: Api, account: str) -> str:
    """Return a token of a service account, as the kubelet would mount it."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = api.create(f"{PATHS['ServiceAccount']}/{account}/token", request)
    token: str = answer["status"]["token"]
    return token


@pytest.fixture(scope="session")
def operator_config(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the rights of the chart's operator account and no other."""
    mine = Api(api.url, api.ca, account_token(api, "podgraft-operator"))
    return mine.kubeconfig(tmp_path_factory.mktemp("operator") / "kubeconfig")


Start = Callable[[], contextlib.AbstractContextManager["subprocess.Popen[bytes]"]]


@pytest.fixture
def start_operator(operator_config: Path, tmp_path: Path) -> Start:
    """Return a function that runs an operator while its block lasts."""
    log = tmp_path / "operator.log"
    environment = os.environ | {
        "KUBECONFIG": str(operator_config),
        "PODGRAFT_NAMESPACE": SYSTEM,
        "PODGRAFT_AGENT_SECONDS": "4",
        "PODGRAFT_REVERT_SECONDS": "8",
        "PODGRAFT_TICK_SECONDS": "1",
        "PODGRAFT_RESYNC_SECONDS": "5",
        "PODGRAFT_LIVENESS_PORT": str(free_port()),
    }

    @contextlib.contextmanager
    def start() -> Iterator[subprocess.Popen[bytes]]:
        command: list[str | Path] = [Path(sys.executable).parent / "podgraft-operator"]
        try:
            with running(command, log, env=environment) as process:
                process.liveness_port = environment["PODGRAFT_LIVENESS_PORT"]  # type: ignore[attr-defined]
                yield process
                assert process.poll() in {None, -9}, "the operator died by itself"
        finally:
            sys.stdout.write(log.read_text("utf-8"))  # pytest shows it when the test fails

    return start


@pytest.fixture
def operator(start_operator: Start) -> Iterator["subprocess.Popen[bytes]"]:
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
