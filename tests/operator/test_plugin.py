"""`kubectl podgraft` against the real API server, started by the real kubectl."""

import contextlib
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apiserver import Api
from installed import PATHS
from stage import Cluster, make_graft, wait
from test_schema import kubectl

from podgraft_cli.plugin import main

pytestmark = pytest.mark.usefixtures("operator")
Plugin = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def plugin(cluster: Cluster, tmp_path: Path) -> Plugin:
    """Return a function that runs the installed plugin in the cluster's namespace."""
    return as_user(cluster.api, cluster, tmp_path)


def as_user(api: Api, cluster: Cluster, folder: Path) -> Plugin:
    """Return a function that runs a command: in this process, which saves seconds, or as one of its own."""
    config = api.kubeconfig(folder / "config")

    def run(command: str, *arguments: str, namespaced: bool = True) -> "subprocess.CompletedProcess[str]":
        where = ["-n", cluster.name] if namespaced else []
        whole = ["kubectl-podgraft", command, *arguments, *where, "--kubeconfig", str(config)]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr(sys, "argv", whole)
            patch.setattr(sys, "stdin", io.StringIO())
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(whole, code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def aside(cluster: Cluster, tmp_path: Path) -> Plugin:
    """Return a function that runs the installed program in the cluster's namespace, beside the test."""
    config = cluster.api.kubeconfig(tmp_path / "config")

    def run(command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        where = ["-n", cluster.name]
        program = Path(sys.executable).parent / "kubectl-podgraft"
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": str(config)}
        return subprocess.run(
            [program, command, *arguments, *where],
            check=False, capture_output=True, text=True, timeout=60, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


def rolled(cluster: Cluster, pods: int = 2, **spec: Any) -> None:
    """Give work for some pods, each on a node of its own."""
    cluster.add_config_map(make_graft())
    for number in range(pods):
        cluster.add_pod(f"redis-{number}", number)
    cluster.apply(**spec)
    for number in range(pods):
        cluster.wait_items(number)


def test_kubectl_finds_it(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `kubectl podgraft`, found on PATH, with kubectl's flags behind it."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    rolled(cluster, 1)
    shown = kubectl(cluster.api, tmp_path, "podgraft", "status", "lp", "-n", cluster.name)
    assert f"{cluster.name}/lp" in shown.stdout, shown.stderr


def test_status_shows_the_tree(cluster: Cluster, plugin: Plugin) -> None:
    """Patch, pods, processes and the thread that is waited for; troubled pods first; the same as JSON."""
    rolled(cluster, 3)
    cluster.answer(0)
    thread = {"tid": 4242, "name": "io_thd_1", "why": "on its stack", "function": "pfcountCommand", "syscall": "futex"}
    cluster.answer(1, "Applying", threadsMigrated=7, stragglers=[thread])
    cluster.answer(2, "Refused", reason="NoPatchSite", message="f is too short")
    wait(lambda: cluster.live_patch()["status"]["pods"]["failed"] == 1, "the status is there")
    text = plugin("status", "lp").stdout
    for words in (
        f"{cluster.name}/lp", "CVE-2025-32023", "1/3 pods patched, 15/24 threads, 1 failed", "pid 100",
        "thread 4242 (io_thd_1) in pfcountCommand, waits in futex: on its stack", "NoPatchSite: f is too short",
    ):  # fmt: skip
        assert words in text, text
    assert text.index("redis-1") < text.index("redis-2") < text.index("redis-0"), "what is done comes last"
    (found,) = json.loads(plugin("status", "--json").stdout)
    assert [one["phase"] for one in found["pods"]] == ["Applied", "Applying", "Refused"]
    assert found["pods"][1]["processes"][0]["stragglers"][0]["tid"] == 4242
    assert found["pods"][0]["node"] == cluster.node(0)


def test_status_follows_until_done(cluster: Cluster, plugin: Plugin, aside: Plugin) -> None:
    """--watch prints each change and ends with 0 when every pod is patched, with 1 when it stalls, with 4 in time."""
    rolled(cluster)
    assert plugin("status", "lp", "--watch", "--timeout", "2s").returncode == 4
    ended: list[subprocess.CompletedProcess[str]] = []
    follower = threading.Thread(target=lambda: ended.append(aside("status", "lp", "--watch", "--json")))
    follower.start()
    cluster.answer(0)
    wait(lambda: cluster.live_patch()["status"]["pods"]["patched"] == 1, "one is done")
    cluster.answer(1)
    follower.join(30)
    lines = [json.loads(line) for line in ended[0].stdout.splitlines()]
    assert ended[0].returncode == 0, ended[0].stderr
    assert [one["phase"] for one in lines[-1]["pods"]] == ["Applied", "Applied"]
    cluster.answer(1, "Failed", reason="HelperUnreachable", message="gone")
    cluster.wait_condition("Stalled", "HelperUnreachable")
    assert plugin("status", "lp", "-w").returncode == 1


def test_why_explains(cluster: Cluster, plugin: Plugin) -> None:
    """A refusal with its hint from the taxonomy; a pod of another build; one that waits; one that nobody means."""
    rolled(cluster, 2)
    cluster.answer(0, "Refused", reason="PreimageMismatch", message="text of f differs at 0x1000")
    cluster.answer(1, "NotApplicable")
    text = plugin("why", "redis-0").stdout
    assert "PreimageMismatch" in text
    assert "text of f differs at 0x1000" in text
    assert "what would help: somebody changed this code since start" in text
    assert "NotApplicable" in plugin("why", "redis-1").stdout
    cluster.add_pod("other", 5, {"app": "other"})
    assert "label app is other, not redis" in plugin("why", "other").stdout
    plugin("pause", "lp")
    cluster.wait_condition("Stalled", "PreimageMismatch")
    cluster.add_pod("redis-9", 6)
    wait(lambda: cluster.live_patch()["status"]["pods"]["matched"] == 3, "seen")
    (found,) = json.loads(plugin("why", "redis-9", "--json").stdout)
    assert (found["livePatch"], found["phase"], found["reason"]) == ("lp", "Waiting", "Paused")
    missing = plugin("why", "no-such-pod")
    assert missing.returncode == 1
    assert 'pods "no-such-pod" not found' in missing.stderr


def test_pause_resume_revert(cluster: Cluster, plugin: Plugin, aside: Plugin) -> None:
    """Pause and resume set the spec; revert asks first and waits for the last pod; resume patches again."""
    rolled(cluster, 1)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    assert plugin("pause", "lp").returncode == 0
    assert cluster.live_patch()["spec"]["paused"] is True
    assert plugin("resume", "lp").returncode == 0
    assert cluster.live_patch()["spec"]["paused"] is False
    assert "podgraft.dev/resumeRequestedAt" in cluster.live_patch()["metadata"]["annotations"]
    asked = plugin("revert", "lp")
    assert asked.returncode == 2, "no terminal, no --yes: nothing is done"
    assert not cluster.gone()
    assert "deletionTimestamp" not in cluster.live_patch()["metadata"]
    ended: list[subprocess.CompletedProcess[str]] = []
    reverting = threading.Thread(target=lambda: ended.append(aside("revert", "lp", "--yes")))
    reverting.start()
    cluster.wait_items(0, "Reverted")
    time.sleep(3)
    assert not ended, "nobody says so before the pod is back"
    cluster.answer(0)
    reverting.join(30)
    assert ended[0].returncode == 0, ended[0].stderr
    assert "is reverted" in ended[0].stdout
    cluster.wait_condition("Stalled", "RevertRequested")
    wait(lambda: cluster.items(0) == [], "nothing is asked of the node any more")
    assert plugin("resume", "lp").returncode == 0
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")


def test_revert_and_delete(cluster: Cluster, plugin: Plugin, aside: Plugin) -> None:
    """With --delete the LivePatch goes as well, in spite of Keep; before a rollout there is nothing to revert."""
    cluster.apply(deletionPolicy="Keep")
    cluster.wait_condition("Stalled", "ConfigMapNotFound")
    assert plugin("revert", "lp", "--yes").returncode == 2
    cluster.add_config_map(make_graft())
    cluster.add_pod("redis-0", 0)
    cluster.wait_items(0)
    cluster.answer(0)
    cluster.wait_condition("Ready", "Patched")
    ended: list[subprocess.CompletedProcess[str]] = []
    reverting = threading.Thread(target=lambda: ended.append(aside("revert", "lp", "--delete", "--yes")))
    reverting.start()
    cluster.wait_items(0, "Reverted")
    cluster.answer(0)
    reverting.join(30)
    assert ended[0].returncode == 0, ended[0].stderr
    assert "reverted and gone" in ended[0].stdout
    assert plugin("status", "lp").returncode == 1


def test_cve_is_fixed_everywhere_or_not(cluster: Cluster, plugin: Plugin) -> None:
    """Yes only when every pod is patched and no other pod runs the same image."""
    cve = f"CVE-2025-{abs(hash(cluster.name)) % 10**7}"
    cluster.add_config_map(make_graft(cve=cve))
    for number in range(2):
        cluster.add_pod(f"redis-{number}", number)
        mark_image(cluster, f"redis-{number}")
    cluster.apply()
    for number in range(2):
        cluster.wait_items(number)
    cluster.answer(0)
    wait(lambda: cluster.live_patch()["status"]["pods"]["patched"] == 1, "one is done")
    half = plugin("cve", cve.lower(), namespaced=False)
    assert half.returncode == 1
    assert "1 pods patched, 1 not" in half.stdout
    cluster.answer(1)
    cluster.wait_condition("Ready", "Patched")
    whole = plugin("cve", cve, namespaced=False)
    assert (whole.returncode, f"{cve} is live-fixed in all 2 pods" in whole.stdout) == (0, True), whole.stdout
    cluster.add_pod("stray", 3, {"app": "other"})
    mark_image(cluster, "stray")
    stray = plugin("cve", cve, "--json", namespaced=False)
    found = json.loads(stray.stdout)
    assert stray.returncode == 1
    assert found["outside"] == [f"{cluster.name}/stray"]
    (image,) = found["images"]
    assert (image["pods"], image["fixed"], image["outside"]) == (3, 2, 1)
    unknown = plugin("cve", "CVE-1999-0001", namespaced=False)
    assert unknown.returncode == 1
    assert "no LivePatch names CVE-1999-0001" in unknown.stdout


def mark_image(cluster: Cluster, pod: str) -> None:
    """Give the pod's containers an image that no other test has."""
    statuses = [one | {"image": f"redis:{cluster.name}"} for one in cluster.pods[pod]["status"]["containerStatuses"]]
    cluster.api.patch(cluster.path("pods", pod) + "/status", {"status": {"containerStatuses": statuses}})


def test_a_user_of_the_namespace_sees_what_he_may(cluster: Cluster, tmp_path: Path) -> None:
    """With podgraft-view alone the status says what the LivePatch says, and which right would show more."""
    rolled(cluster, 1)
    cluster.answer(0, "Refused", reason="NoPatchSite", message="f is too short")
    cluster.wait_condition("Stalled", "NoPatchSite")
    accounts = PATHS["ServiceAccount"].replace("podgraft-system", cluster.name)
    cluster.api.create(accounts, {"metadata": {"name": "viewer"}})
    binding = {
        "metadata": {"name": "viewer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "podgraft-view"},
        "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": cluster.name}],
    }
    cluster.api.create(PATHS["RoleBinding"].replace("podgraft-system", cluster.name), binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = cluster.api.create(f"{accounts}/viewer/token", request)["status"]["token"]
    viewer = as_user(Api(cluster.api.url, cluster.api.ca, token), cluster, tmp_path)
    seen = viewer("status", "lp")
    assert seen.returncode == 0, seen.stderr
    assert "podgraft-inspect" in seen.stdout
    assert "NoPatchSite" in seen.stdout
    denied = viewer("pause", "lp")
    assert denied.returncode == 1
    assert "cannot patch resource" in denied.stderr
