"""Real tokens of agent, operator and users against the real API server: what each of them must not be able to do.

Every attempt is printed with its answer. A request is refused when the answer is 403: a broken token would be 401.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from apiserver import GROUP, Api, Json, Refused
from installed import PATHS, RBAC, SYSTEM, account_token, agent_api
from stage import Cluster, make_graft

from podgraft_api.nodepatch import signatures_name

MERGE = "application/merge-patch+json"
CORE, SYSTEM_PATH = "/api/v1", f"/api/v1/namespaces/{SYSTEM}"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
AS_ADMIN = {"Impersonate_User": "admin", "Impersonate_Group": "system:masters"}


@dataclass(frozen=True)
class Attempt:
    """One request, in words and as it is sent."""

    what: str
    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def send(self, api: Api) -> tuple[int, str]:
        """Return status and message of the answer."""
        content = MERGE if self.method == "PATCH" else "application/json"
        try:
            api.call(self.method, self.path, self.body, content, **self.headers)
        except Refused as error:
            return error.status, error.message
        return 200, "done"


def token_request(account: str, namespace: str = SYSTEM) -> tuple[str, Json]:
    path = f"{CORE}/namespaces/{namespace}/serviceaccounts/{account}/token"
    return path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}


def binding(user: str) -> Json:
    """A binding that would make an account the ruler of the cluster."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }  # fmt: skip


def config_map(name: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key-0.pem": "x"}}


def pod(name: str = "mine") -> Json:
    containers = [{"name": "x", "image": "x", "securityContext": {"privileged": True}}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}}


def escalations(namespace: str) -> Iterable[Attempt]:
    """What nobody of ours may do, whoever it is."""
    other = f"{CORE}/namespaces/{namespace}"
    yield Attempt("read a Secret of the system", "GET", f"{SYSTEM_PATH}/secrets/x")
    yield Attempt("list all Secrets", "GET", f"{CORE}/secrets")
    yield Attempt("list Secrets of a namespace", "GET", f"{other}/secrets")
    yield Attempt("create a privileged pod", "POST", f"{other}/pods", pod())
    yield Attempt("create a pod in the system", "POST", f"{SYSTEM_PATH}/pods", pod())
    yield Attempt("change a pod", "PATCH", f"{other}/pods/redis-0", {"metadata": {"labels": {"a": "b"}}})
    yield Attempt("delete a pod", "DELETE", f"{other}/pods/redis-0")
    yield Attempt("exec into a pod", "POST", f"{other}/pods/redis-0/exec?command=id&stdout=true")
    yield Attempt("add an ephemeral container", "PATCH", f"{other}/pods/redis-0/ephemeralcontainers", {"spec": {}})
    yield Attempt("read logs", "GET", f"{other}/pods/redis-0/log")
    yield Attempt("read a node", "GET", f"{CORE}/nodes/x")
    yield Attempt("reach a kubelet", "GET", f"{CORE}/nodes/x/proxy/pods")
    yield Attempt("read trusted keys as root", "GET", f"{CORE}/secrets", headers=AS_ADMIN)
    yield Attempt("impersonate the operator", "GET", f"{CORE}/pods", headers={
        "Impersonate_User": f"system:serviceaccount:{SYSTEM}:podgraft-operator"})  # fmt: skip
    for account in ("podgraft-operator", "podgraft-agent"):
        path, body = token_request(account)
        yield Attempt(f"make a token of {account}", "POST", path, body)
    yield Attempt("bind cluster-admin", "POST", f"{RBAC}/clusterrolebindings", binding("x"))
    yield Attempt("widen a ClusterRole", "PATCH", f"{RBAC}/clusterroles/podgraft-agent", {"rules": []})
    yield Attempt("widen a Role", "PATCH", f"{RBAC}/namespaces/{SYSTEM}/roles/podgraft-agent", {"rules": []})
    policies = f"{ADMISSION}/validatingadmissionpolicies/podgraft-agent-own-node"
    yield Attempt("delete the admission policy", "DELETE", policies)
    yield Attempt("unbind the admission policy", "DELETE", policies.replace("policies/", "policybindings/"))
    yield Attempt("read a certificate request", "GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests")
    yield Attempt("change a CRD", "PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
                  "livepatches.podgraft.dev", {"metadata": {"labels": {"a": "b"}}})  # fmt: skip
    yield Attempt("change the agents", "PATCH", f"/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/podgraft-agent", {})
    yield Attempt(
        "change the operator", "PATCH", f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/podgraft-operator", {}
    )
    trust = f"{SYSTEM_PATH}/configmaps/podgraft-trust"
    yield Attempt("change the trusted keys", "PATCH", trust, {"data": {"key-0.pem": "x"}})
    yield Attempt("delete the trusted keys", "DELETE", trust)
    yield Attempt("create a ConfigMap in the system", "POST", f"{SYSTEM_PATH}/configmaps", config_map("mine"))
    yield Attempt("read the API server's profile", "GET", "/debug/pprof/")
    yield Attempt("read the API server's metrics", "GET", "/metrics")


def examine(who: str, api: Api, allowed: Iterable[Attempt], forbidden: Iterable[Attempt], show: Any) -> None:
    """Send everything, print each attempt with its answer, and fail if any answer is not as it should be."""
    wrong = []
    with show.disabled():
        print(f"\n{who}")  # noqa: T201 - the table is the purpose
        for attempts, good in ((allowed, {200}), (forbidden, {403})):
            for one in attempts:
                status, message = one.send(api)
                mark = "ok  " if status in good else "BAD "
                print(f"  {mark}{status}  {one.what:<44} {message[:110]}")  # noqa: T201 - the same
                if status not in good:
                    wrong.append(f"{one.what}: {status} {message}")
    assert wrong == []


@pytest.mark.usefixtures("operator")
def test_agent(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """An agent's token, bound to a pod on its node, opens its own status and the bundles, and nothing else."""
    for number in (0, 1):
        cluster.add_pod(f"redis-{number}", number)
    cluster.add_config_map(make_graft())
    cluster.apply()
    digest = cluster.wait_items(0)[0]["bundle"]["digest"]
    cluster.wait_items(1)
    own, other = cluster.node_path(0), cluster.node_path(1)
    bundle = f"{SYSTEM_PATH}/configmaps/{signatures_name(digest)}"
    status = {"status": {"agentVersion": "x"}}
    whole = cluster.api.get(other)
    namesake = {"apiVersion": "podgraft.dev/v1alpha1", "kind": "NodePatch", "metadata": {"name": "mine"}}
    allowed = [
        Attempt("write its own status", "PATCH", f"{own}/status", status),
        Attempt("read its own NodePatch", "GET", own),
        Attempt("read another NodePatch (RBAC knows no own)", "GET", other),
        Attempt("read a bundle's signatures", "GET", bundle),
        Attempt("read the trusted keys, which are public", "GET", f"{SYSTEM_PATH}/configmaps/podgraft-trust"),
    ]
    live_patches = cluster.path("livepatches")
    forbidden = [
        Attempt("write the status of another node", "PATCH", f"{other}/status", status),
        Attempt("replace the status of another node", "PUT", f"{other}/status", whole),
        Attempt("change its own work", "PATCH", own, {"spec": {"items": []}}),
        Attempt("replace its own NodePatch", "PUT", own, cluster.api.get(own)),
        Attempt("change another node's work", "PATCH", other, {"spec": {"items": []}}),
        Attempt("delete its own NodePatch", "DELETE", own),
        Attempt("delete another NodePatch", "DELETE", other),
        Attempt("delete all NodePatches", "DELETE", f"{GROUP}/nodepatches"),
        Attempt("create a NodePatch", "POST", f"{GROUP}/nodepatches", namesake),
        Attempt("list LivePatches", "GET", f"{GROUP}/livepatches"),
        Attempt("read a LivePatch", "GET", f"{live_patches}/lp"),
        Attempt("change a LivePatch", "PATCH", f"{live_patches}/lp", {"spec": {"paused": True}}),
        Attempt("change a LivePatch's status", "PATCH", f"{live_patches}/lp/status", {"status": {}}),
        Attempt("list pods", "GET", f"{CORE}/pods"),
        Attempt("read a pod", "GET", cluster.path("pods", "redis-0")),
        Attempt("list bundles", "GET", f"{SYSTEM_PATH}/configmaps"),
        Attempt("read a ConfigMap elsewhere", "GET", cluster.path("configmaps", "fix")),
        Attempt("change a bundle's signatures", "PATCH", bundle, {"data": {}}),
        Attempt("delete a bundle's signatures", "DELETE", bundle),
        Attempt("write an Event", "POST", cluster.path("events"), {"metadata": {"name": "x"}}),
        *escalations(cluster.name),
    ]
    examine(f"agent of {cluster.node(0)}", agent_api(cluster.api, cluster.node(0)), allowed, forbidden, capsys)
    unbound = Api(cluster.api.url, cluster.api.ca, account_token(cluster.api, "podgraft-agent"))
    without = [Attempt("write a status", "PATCH", f"{one}/status", status) for one in (own, other)]
    examine("agent's account, token without a node", unbound, [], without, capsys)


def test_agent_may_do_nothing_that_is_not_named(cluster: Cluster) -> None:
    """The API server's own list of what an agent may do is what this test says, in its namespace and elsewhere."""
    agent = agent_api(cluster.api, cluster.node(0))
    nodes = {("podgraft.dev", "nodepatches", verb) for verb in ("get", "list", "watch")}
    nodes |= {("podgraft.dev", "nodepatches/status", "patch")}
    assert rules(agent, cluster.name) == nodes
    assert rules(agent, SYSTEM) == nodes | {("", "configmaps", "get")}


def rules(api: Api, namespace: str) -> set[tuple[str, str, str]]:
    """Return group, resource and verb of everything that is allowed, but for what everybody may ask about oneself."""
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace}}
    answer = api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)["status"]
    assert not answer["incomplete"]
    return {
        (group, resource, verb)
        for rule in answer["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if not resource.startswith(("selfsubject", "selfsubjectreviews"))
    }


def test_operator(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator that was taken over can choose among trusted bundles; it reaches neither keys nor Secrets."""
    cluster.add_pod("redis-0", 0)
    token = account_token(cluster.api, "podgraft-operator")
    bundle = f"{SYSTEM_PATH}/configmaps/podgraft-bundle-{cluster.name}"
    allowed = [
        Attempt("create a bundle", "POST", f"{SYSTEM_PATH}/configmaps", config_map(bundle.rpartition("/")[2])),
        Attempt("add a signature", "PATCH", bundle, {"data": {"x": "y"}}),
        Attempt("delete a bundle", "DELETE", bundle),
        Attempt("list pods", "GET", f"{CORE}/pods"),
    ]
    nameless = config_map("x") | {"metadata": {"generateName": "mine-"}}
    forbidden = [
        Attempt("create a ConfigMap of any name", "POST", f"{SYSTEM_PATH}/configmaps", nameless),
        Attempt("delete all ConfigMaps of the system", "DELETE", f"{SYSTEM_PATH}/configmaps"),
        Attempt("create a ConfigMap elsewhere", "POST", cluster.path("configmaps"), config_map("podgraft-bundle-x")),
        Attempt("list ConfigMaps elsewhere", "GET", cluster.path("configmaps")),
        Attempt("report for an agent", "PATCH", f"{cluster.node_path(0)}/status", {"status": {}}),
        Attempt("create a LivePatch", "POST", cluster.path("livepatches"), live_patch()),
        Attempt("delete a LivePatch", "DELETE", cluster.path("livepatches", "lp")),
        *escalations(cluster.name),
    ]
    examine("operator", Api(cluster.api.url, cluster.api.ca, token), allowed, forbidden, capsys)


def live_patch(name: str = "mine") -> Json:
    spec = {"bundle": {"configMap": {"name": "fix"}}, "selector": {"matchLabels": {"app": "redis"}}}
    return {
        "apiVersion": "podgraft.dev/v1alpha1", "kind": "LivePatch", "metadata": {"name": name}, "spec": spec
    }  # fmt: skip


def user(cluster: Cluster, role: str) -> Api:
    """Return the API as an account of the namespace with one of the chart's roles there."""
    accounts = f"{CORE}/namespaces/{cluster.name}/serviceaccounts"
    cluster.api.create(accounts, {"metadata": {"name": role}})
    body = binding("") | {"kind": "RoleBinding", "metadata": {"name": role}}
    body["roleRef"] = body["roleRef"] | {"name": role}
    body["subjects"] = [{"kind": "ServiceAccount", "name": role, "namespace": cluster.name}]
    cluster.api.create(f"{RBAC}/namespaces/{cluster.name}/rolebindings", body)
    return Api(cluster.api.url, cluster.api.ca, account_token(cluster.api, role, cluster.name))


def elsewhere(cluster: Cluster) -> list[Attempt]:
    """What a user of one namespace may not do."""
    other = f"{GROUP}/namespaces/{SYSTEM}/livepatches"
    own = f"{RBAC}/namespaces/{cluster.name}"
    bound = binding("x") | {"kind": "RoleBinding"}
    return [
        Attempt("create a LivePatch in another namespace", "POST", other, live_patch()),
        Attempt("list LivePatches of all namespaces", "GET", f"{GROUP}/livepatches"),
        Attempt("write a status, to hide a failure", "PATCH", cluster.path("livepatches", "lp") + "/status",
                {"status": {}}),
        Attempt("list NodePatches", "GET", f"{GROUP}/nodepatches"),
        Attempt("give a node work", "PATCH", cluster.node_path(0), {"spec": {"items": []}}),
        Attempt("report for an agent", "PATCH", cluster.node_path(0) + "/status", {"status": {}}),
        Attempt("read a stored bundle", "GET", f"{SYSTEM_PATH}/configmaps/podgraft-trust"),
        Attempt("list pods", "GET", cluster.path("pods")),
        Attempt("create a ConfigMap", "POST", cluster.path("configmaps"), config_map("mine")),
        Attempt("bind cluster-admin in the namespace", "POST", f"{own}/rolebindings", bound),
        *escalations(cluster.name),
    ]  # fmt: skip


def test_user_with_edit(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """podgraft-edit in one namespace is for LivePatches of that namespace, and for nothing else."""
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    path = cluster.path("livepatches")
    allowed = [
        Attempt("create a LivePatch", "POST", path, live_patch()),
        Attempt("pause it", "PATCH", f"{path}/mine", {"spec": {"paused": True}}),
        Attempt("list LivePatches", "GET", path),
        Attempt("delete it", "DELETE", f"{path}/mine"),
    ]
    examine("user with podgraft-edit", user(cluster, "podgraft-edit"), allowed, elsewhere(cluster), capsys)


def test_user_with_view(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """podgraft-view looks and changes nothing."""
    cluster.add_pod("redis-0", 0)
    cluster.apply()
    path = cluster.path("livepatches")
    allowed = [Attempt("list LivePatches", "GET", path), Attempt("read one", "GET", f"{path}/lp")]
    forbidden = [
        Attempt("create a LivePatch", "POST", path, live_patch()),
        Attempt("pause one", "PATCH", f"{path}/lp", {"spec": {"paused": True}}),
        Attempt("delete one", "DELETE", f"{path}/lp"),
        *elsewhere(cluster),
    ]
    examine("user with podgraft-view", user(cluster, "podgraft-view"), allowed, forbidden, capsys)


@pytest.mark.usefixtures("operator")
def test_bundles_of_other_namespaces_are_out_of_reach(cluster: Cluster) -> None:
    """The operator reads ConfigMaps everywhere, and only that of the LivePatch's own namespace for it."""
    assert PATHS["ConfigMap"] == f"{SYSTEM_PATH}/configmaps"
    cluster.api.create(PATHS["ConfigMap"], config_map(f"fix-{cluster.name}"))
    cluster.apply(bundle={"configMap": {"name": f"fix-{cluster.name}"}})
    cluster.wait_condition("Stalled", "ConfigMapNotFound")
