"""What the chart installs in an API server without nodes: CRDs, accounts, roles, admission policy."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from apiserver import Api
from stage import wait

Start = Callable[[], contextlib.AbstractContextManager["subprocess.Popen[bytes]"]]
ROOT = Path(__file__).parents[2]
SYSTEM = "podgraft-system"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PATHS = {
    "ConfigMap": f"/api/v1/namespaces/{SYSTEM}/configmaps",
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


def account_token(api: Api, account: str, namespace: str = SYSTEM) -> str:
    """Return a token of a service account, as the kubelet would mount it."""
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    answer = api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)
    token: str = answer["status"]["token"]
    return token


def agent_api(api: Api, node: str) -> Api:
    """Return the API with a token as the kubelet of a node mounts it: bound to an agent pod on that node."""
    name = f"agent-{uuid.uuid4().hex[:8]}"
    containers = [{"name": "agent", "image": "x"}]
    spec = {"nodeName": node, "serviceAccountName": "podgraft-agent", "containers": containers}
    pod = api.create(f"/api/v1/namespaces/{SYSTEM}/pods", {"metadata": {"name": name}, "spec": spec})
    bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod["metadata"]["uid"]}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": bound}}
    answer = api.create(f"{PATHS['ServiceAccount']}/podgraft-agent/token", body)
    return Api(api.url, api.ca, answer["status"]["token"])
