"""A baseline for what the chart runs, in the manner of kubesec: each rule over every container, for several values.

An exception is named here, with the values that ask for it; nothing else may deviate.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

sys.path.insert(0, str(Path(__file__).parent))
from test_chart import CHART, Json, helm, one, render

VALUES = {
    "default": (),
    "privileged": ("agent.privileged=true",),
    "filters": ("agent.readSeccompFilters=true",),
    "registries": ("imagePullSecrets[0].name=regcred", "registries.ca=PEM", "registries.allow={a.example/x}"),
    "aggregate": ("rbac.aggregate=true",),
}
AGENT, OPERATOR = "podgraft-agent", "podgraft-operator"
# What the engine needs on the node, and no more; templates/agent.yaml says what each is for.
LISTED = {"SYS_PTRACE", "DAC_OVERRIDE", "CHECKPOINT_RESTORE", "SYS_NICE"}


@pytest.fixture(scope="module", params=VALUES)
def rendered(request: pytest.FixtureRequest) -> tuple[str, list[Json]]:
    return request.param, render(*VALUES[request.param])


def pods(objects: list[Json]) -> dict[str, Json]:
    """Return the pod specs by the name of their workload."""
    return {
        body["metadata"]["name"]: body["spec"]["template"]["spec"]
        for body in objects
        if body["kind"] in {"Deployment", "DaemonSet"}
    }


def hook(objects: list[Json]) -> Json:
    """Return the one Job."""
    (job,) = [body for body in objects if body["kind"] == "Job"]
    return job


def test_there_is_nothing_else_that_runs(rendered: tuple[str, list[Json]]) -> None:
    """One Deployment, one DaemonSet, one container each; no Service, webhook or Secret; one Job, for helm."""
    _, objects = rendered
    kinds = {body["kind"] for body in objects}
    assert kinds == {
        "ClusterRole", "ClusterRoleBinding", "ConfigMap", "DaemonSet", "Deployment", "Job", "Role", "RoleBinding",
        "ServiceAccount", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    assert pods(objects).keys() == {AGENT, OPERATOR}
    for spec in pods(objects).values():
        assert len(spec["containers"]) == 1
        assert "initContainers" not in spec


def test_containers(rendered: tuple[str, list[Json]]) -> None:
    """Read-only root, limits, probes, a fixed tag, no ports but those of probes and metrics, no host's network."""
    _, objects = rendered
    for name, spec in pods(objects).items():
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["livenessProbe"]
        assert container["readinessProbe"]
        assert [port["name"] for port in container["ports"]] == ["health", "metrics"]
        assert not any("hostPort" in port for port in container["ports"])
        assert container["image"].rpartition(":")[2] not in {"", "latest"}
        assert not any("secretKeyRef" in str(variable) for variable in container["env"])
        assert not spec.keys() & {"hostNetwork", "hostIPC", "shareProcessNamespace"}
        assert spec.get("hostPID", False) is (name == AGENT)
        assert spec["priorityClassName"]


def test_privileges(rendered: tuple[str, list[Json]]) -> None:
    """The operator has none; the agent has the listed capabilities and no others, unless it shall be privileged."""
    values, objects = rendered
    operator, agent = (pods(objects)[name]["containers"][0]["securityContext"] for name in (OPERATOR, AGENT))
    assert operator["capabilities"] == {"drop": ["ALL"]}
    assert operator["allowPrivilegeEscalation"] is False
    assert "privileged" not in operator
    assert pods(objects)[OPERATOR]["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}
    }  # fmt: skip
    if values == "privileged":
        assert agent == {"runAsUser": 0, "readOnlyRootFilesystem": True, "privileged": True}
        return
    filters = values == "filters"
    assert agent["privileged"] is False
    assert agent["allowPrivilegeEscalation"] is False
    assert agent["capabilities"]["drop"] == ["ALL"]
    assert set(agent["capabilities"]["add"]) == LISTED | ({"SYS_ADMIN"} if filters else set())
    assert agent["seccompProfile"] == {"type": "Unconfined" if filters else "RuntimeDefault"}


def test_volumes(rendered: tuple[str, list[Json]]) -> None:
    """One folder of the host, bounded scratch space, keys read-only; Secrets are for the operator alone."""
    values, objects = rendered
    for name, spec in pods(objects).items():
        kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"configMap", "emptyDir", "hostPath", "projected"}
        assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if "emptyDir" in volume)
        hosts = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
        assert hosts == (["/run/podgraft"] if name == AGENT else [])
        assert ("projected" in kinds) is (name == OPERATOR and values == "registries")
        mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        for volume in spec["volumes"]:
            if volume.keys() & {"configMap", "projected"}:
                assert mounts[volume["name"]]["readOnly"] is True


def test_tokens_are_asked_for(rendered: tuple[str, list[Json]]) -> None:
    """A pod that somebody else gives our accounts gets no token by itself."""
    _, objects = rendered
    accounts = [body for body in objects if body["kind"] == "ServiceAccount"]
    assert [body["automountServiceAccountToken"] for body in accounts] == [False, False, False]
    assert all(spec["automountServiceAccountToken"] is True for spec in pods(objects).values())


def test_roles(rendered: tuple[str, list[Json]]) -> None:
    """Nobody may read Secrets, run things in pods or give rights; users' roles are aggregated only if asked for."""
    values, objects = rendered
    for body in objects:
        for rule in body.get("rules", []):
            text = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not set(text) & {"*", "secrets", "nodes", "impersonate", "bind", "escalate"}
            assert "rbac.authorization.k8s.io" not in text
            assert not any("/" in one and one not in {"livepatches/status", "nodepatches/status"} for one in text)
    for role in ("view", "edit"):
        labels = one(objects, "ClusterRole", f"podgraft-{role}")["metadata"]["labels"]
        aggregated = {key.rpartition("-")[2] for key in labels if "aggregate-to" in key}
        expected = {"view": {"view"}, "edit": {"edit", "admin"}}[role] if values == "aggregate" else set()
        assert aggregated == expected


def key_pair() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), public.decode()


def template(tmp_path: Path, **trust: Any) -> tuple[list[Json], str]:
    """Render with these values of trust; return objects and what helm says against it."""
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"trust": trust}))
    done = helm("template", "podgraft", str(CHART), "--kube-version", "1.34.0", "--values", str(values))
    return [body for body in yaml.safe_load_all(done.stdout) if body], done.stderr


def test_trusted_keys_reach_both(tmp_path: Path) -> None:
    """The keys are in the one ConfigMap that operator and agent mount, and a change of them restarts both."""
    _, first = key_pair()
    _, second = key_pair()
    before, _ = template(tmp_path, keys=[first])
    after, _ = template(tmp_path, keys=[first, second])
    assert one(after, "ConfigMap", "podgraft-trust")["data"] == {"key-0.pem": first, "key-1.pem": second}
    for kind, name in (("Deployment", OPERATOR), ("DaemonSet", AGENT)):
        old, new = (one(objects, kind, name)["spec"]["template"] for objects in (before, after))
        assert old["metadata"]["annotations"] != new["metadata"]["annotations"]
        variables = {variable["name"]: variable.get("value") for variable in new["spec"]["containers"][0]["env"]}
        assert variables["PODGRAFT_TRUST_DIR"] == "/etc/podgraft/trust"
        assert variables["PODGRAFT_ALLOW_UNSIGNED"] == "false"
        assert {"name": "trust", "configMap": {"name": "podgraft-trust"}} in new["spec"]["volumes"]


def test_what_is_no_public_key_is_refused_and_not_shown(tmp_path: Path) -> None:
    """A private key given by mistake does not get into the cluster, nor into a log."""
    private, public = key_pair()
    for wrong in (private, public.replace("MCow", "MCox"), "text", ""):
        objects, said = template(tmp_path, keys=[public, wrong])
        assert objects == []
        assert private.splitlines()[1] not in said
    assert "trust.keys[1] is no ed25519 public key" in template(tmp_path, keys=[public, private])[1]
    assert one(template(tmp_path, allowUnsigned=True)[0], "ConfigMap", "podgraft-trust")["data"] is None


def test_hook(rendered: tuple[str, list[Json]]) -> None:
    """What runs at helm uninstall has no privileges, no Secrets, and limits of time and memory."""
    job = hook(rendered[1])
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert job["spec"]["activeDeadlineSeconds"]
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["limits"]["memory"]
    assert not spec.keys() & {"hostPID", "hostNetwork", "hostIPC", "volumes"}


@pytest.mark.parametrize(("patches", "verb"), [("Keep", "patch"), ("Revert", "delete")])
def test_hook_may_do_what_it_is_for(patches: str, verb: str) -> None:
    """LivePatches and the operator's own Deployment, nothing else; it exists only while helm uninstalls."""
    objects = render(f"uninstall.patches={patches}")
    mine = [body for body in objects if body["metadata"]["name"] == "podgraft-uninstall"]
    assert all(body["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete" for body in mine)
    first, *more = one(mine, "ClusterRole", "podgraft-uninstall")["rules"]
    assert first == {"apiGroups": ["podgraft.dev"], "resources": ["livepatches"], "verbs": ["list", verb]}
    assert [(rule["resources"], rule["verbs"]) for rule in more] == [(["nodepatches"], ["list"])] * (
        patches == "Revert"
    )
    assert any(body["kind"] == "Role" for body in mine) is (patches == "Keep")
