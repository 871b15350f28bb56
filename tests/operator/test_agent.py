"""Operator, agent and engine together on a real process; only the kubelet is missing, and the test stands in for it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import Refused, free_port, listens, running
from installed import ROOT, SYSTEM, agent_api
from stage import KEY, STRANGER, Cluster, make_graft, wait, write_trust

from podgraft_api.nodepatch import signatures_name
from podgraft_bundle.bundle import decode, read_bundle, save_bundle
from podgraft_bundle.trust import key_id, sign
from tests.torture.engines import run

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import forge

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("operator")]
TARGETS = Path(__file__).parents[1] / "targets"
CGROUP = Path("/sys/fs/cgroup/pids") if Path("/sys/fs/cgroup/pids").is_dir() else Path("/sys/fs/cgroup")
Json = dict[str, Any]


@dataclass
class Target:
    """A program in a container's cgroup; it answers questions on its pipe."""

    child: "subprocess.Popen[str]"
    container: str

    def ask(self, question: str) -> str:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(question + "\n")
        self.child.stdin.flush()
        return self.child.stdout.readline().strip()

    def tally(self) -> Json:
        found: Json = json.loads(self.ask("report"))
        return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    forge.compile_program(TARGETS / "pairs.c", folder / "pairs")
    forge.compile_object(TARGETS / "pairs_patch.c", folder / "patch.o")
    forge.forge(folder / "pairs", folder / "patch.o", ["left", "right", "linger"], folder / "pairs.graft")
    save_bundle(sign(read_bundle(folder / "pairs.graft"), KEY), folder / "pairs.graft")
    return folder


@contextlib.contextmanager
def in_container(command: list[str | Path]) -> Iterator[Target]:
    """Run a program in a cgroup of the form that containerd makes."""
    container = uuid.uuid4().hex * 2
    folder = CGROUP / f"podgraft-test-{container[:8]}"
    group = folder / f"pod{uuid.uuid4()}" / container
    group.mkdir(parents=True)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            (group / "cgroup.procs").write_text(str(child.pid))
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield Target(child, container)
        finally:
            child.kill()
            child.wait()
    for path in (group, group.parent, folder):
        path.rmdir()


@pytest.fixture
def target(built: Path) -> Iterator[Target]:
    with in_container([built / "pairs", "0", "3"]) as one:
        yield one


@pytest.fixture
def foreign(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A target of another user whose program lies where that user alone may look."""
    folder = tmp_path_factory.mktemp("home")
    program = Path(shutil.copy(built / "pairs", folder / "pairs"))
    for path, mode in ((program, 0o700), (folder, 0o700)):
        os.chown(path, 65533, 65533)
        path.chmod(mode)
    for parent in folder.parents:
        if parent != Path("/tmp"):  # noqa: S108 - pytest's own folders on the way are closed to others
            parent.chmod(parent.stat().st_mode | 0o011)
    with in_container(["setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", program, "0", "3"]) as one:
        yield one


def add_pod(cluster: Cluster, target: Target, name: str = "redis-0") -> None:
    """Create the pod whose container "redis" the target is."""
    pod = cluster.add_pod(name, 0)
    statuses = pod["status"]["containerStatuses"]
    statuses[0]["containerID"] = f"containerd://{target.container}"
    cluster.api.patch(cluster.path("pods", name) + "/status", {"status": {"containerStatuses": statuses}})


StartAgent = Callable[..., contextlib.AbstractContextManager["subprocess.Popen[bytes]"]]


@pytest.fixture
def start_agent(cluster: Cluster, tmp_path: Path, trust_dir: Path) -> StartAgent:
    node = cluster.node(0)
    config = agent_api(cluster.api, node).kubeconfig(tmp_path / "agent-config")
    log = tmp_path / "agent.log"
    environment = os.environ | {
        "KUBECONFIG": str(config),
        "NODE_NAME": node,
        "PODGRAFT_NAMESPACE": SYSTEM,
        "PODGRAFT_CACHE_DIR": str(tmp_path / "cache"),
        "PODGRAFT_RUN": str(tmp_path / "run"),
        "PODGRAFT_TRUST_DIR": str(trust_dir),
        "PODGRAFT_SCAN_SECONDS": "1",
        "PODGRAFT_STATUS_SECONDS": "0.2",
        "PODGRAFT_HEARTBEAT_SECONDS": "1",
        "PODGRAFT_ENGINE": str(Path(sys.executable).parent / "podgraft-engine"),
    }

    @contextlib.contextmanager
    def start(*prefix: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
        port = {"PODGRAFT_HEALTH_PORT": str(free_port()), "PODGRAFT_METRICS_PORT": str(free_port())}
        command: list[str | Path] = [*prefix, Path(sys.executable).parent / "podgraft-agent"]
        try:
            with running(command, log, env=environment | port | more) as process:
                wait(lambda: listens(port["PODGRAFT_HEALTH_PORT"]), "the agent is up", 90)
                process.metrics_port = port["PODGRAFT_METRICS_PORT"]  # type: ignore[attr-defined]
                process.log = log  # type: ignore[attr-defined]
                yield process
        finally:
            sys.stdout.write(log.read_text("utf-8"))

    return start


def runs(target: Target) -> str:
    """Return which code the target's threads ran just now."""
    target.tally()  # counting starts anew with every question
    time.sleep(0.5)
    counted = target.tally()
    assert (counted["wrong"], counted["eintr"]) == (0, 0)
    return "mixed" if counted["new"] and counted["old"] else "new" if counted["new"] else "old"


def report(cluster: Cluster) -> Json:
    """Return the agent's report of the one process."""
    try:
        items = cluster.api.get(cluster.node_path(0)).get("status", {}).get("items", [])
    except Refused as error:
        if error.status != 404:
            raise
        return {}
    found: Json = next((one for item in items for one in item.get("processes", [])), {})
    return found


def apply(cluster: Cluster, built: Path, **spec: Any) -> None:
    cluster.add_config_map((built / "pairs.graft").read_bytes())
    cluster.apply(**spec)


def test_a_process_is_patched_and_reverted(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """From apply to Ready to deleted, the running process changes its code and changes it back."""
    add_pod(cluster, target)
    assert runs(target) == "old"
    with start_agent():
        apply(cluster, built)
        cluster.wait_condition("Ready", "Patched")
        assert runs(target) == "new"
        status = cluster.live_patch()["status"]
        assert status["threads"]["total"] == status["threads"]["migrated"] >= 5
        assert status["maxHeldMicroseconds"] > 0
        assert report(cluster)["pid"] == target.child.pid
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(cluster.gone, "reverted and gone")
        assert runs(target) == "old"


def named_capabilities() -> list[str]:
    values = yaml.safe_load((ROOT / "charts/podgraft/values.yaml").read_text())
    found: list[str] = values["agent"]["capabilities"]
    return found


# SYS_NICE only makes holds shorter.
@pytest.mark.parametrize("missing", [None, *(one for one in named_capabilities() if one != "SYS_NICE")])
def test_named_capabilities_suffice(
    cluster: Cluster, foreign: Target, built: Path, start_agent: StartAgent, missing: str | None
) -> None:
    """With the chart's named capabilities an agent patches another user's process; without one of them it cannot."""
    add_pod(cluster, foreign)
    names = ",".join(f"+{one.lower()}" for one in named_capabilities() if one != missing)
    with start_agent("setpriv", f"--bounding-set=-all,{names}", "--inh-caps=-all"):
        apply(cluster, built)
        if missing is None:
            cluster.wait_condition("Ready", "Patched")
            assert runs(foreign) == "new"
            cluster.api.delete(cluster.path("livepatches", "lp"))
            wait(cluster.gone, "reverted and gone")
        else:
            time.sleep(10)
            assert cluster.conditions()["Ready"]["reason"] != "Patched"
        assert runs(foreign) == "old"


def test_straggler_is_shown_and_leaves(cluster: Cluster, target: Target, built: Path, start_agent: StartAgent) -> None:
    """A thread that sits in a replaced function is named; when it leaves, the agent's next try converges."""
    add_pod(cluster, target)
    with start_agent():
        target.ask("linger")
        apply(cluster, built, strategy={"threadDeadlineSeconds": 2})
        cluster.wait_condition("Reconciling", "WaitingForThreads")

        def only_linger() -> Json | None:
            status: Json = cluster.live_patch()["status"]
            functions = [one.get("function") for one in status.get("stragglers", [])]
            return status if functions == ["linger"] else None

        status = wait(only_linger, "the one straggler is named")
        straggler = status["stragglers"][0]
        assert (straggler["pod"], straggler["pid"]) == ("redis-0", target.child.pid)
        assert straggler["syscall"] is not None
        assert status["threads"]["migrated"] == status["threads"]["total"] - 1
        assert f"thread {straggler['tid']}" in cluster.conditions()["Ready"]["message"]
        target.ask("go on")
        cluster.wait_condition("Ready", "Patched", seconds=40)


def test_a_declared_point_lets_a_straggler_go(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """A thread that never leaves a replaced function migrates where the LivePatch says that it may."""
    add_pod(cluster, target)
    with start_agent():
        target.ask("restless")
        target.ask("linger")
        apply(cluster, built, points=["look"])
        cluster.wait_condition("Ready", "Patched", seconds=40)


def test_agent_killed_in_the_middle(cluster: Cluster, target: Target, built: Path, start_agent: StartAgent) -> None:
    """The agent is killed in a transition and after it; its successor finishes, adopts, and reverts."""
    add_pod(cluster, target)
    with start_agent() as first:
        target.ask("linger")
        apply(cluster, built, strategy={"threadDeadlineSeconds": 30})
        wait(lambda: report(cluster).get("phase") == "Applying", "in the middle")
        first.kill()
    assert runs(target) in {"new", "mixed"}, "the process went on"
    target.ask("go on")
    with start_agent() as second:
        cluster.wait_condition("Ready", "Patched", seconds=40)
        held = report(cluster)["maxHeldMicroseconds"]
        second.kill()
    with start_agent():
        time.sleep(3)
        assert report(cluster)["phase"] == "Applied"
        assert report(cluster)["maxHeldMicroseconds"] == held
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(cluster.gone, "reverted and gone")
    assert runs(target) == "old"


@pytest.fixture(scope="module")
def better(built: Path) -> bytes:
    """The bundle that comes after the first one and replaces it; its functions answer with 3, not 2."""
    forge.compile_object(TARGETS / "pairs_patch.c", built / "better.o", "-DVERSION=3")
    out = built / "better.graft"
    functions = ["left", "right", "linger"]
    forge.forge(built / "pairs", built / "better.o", functions, out, name="better", replaces=["pairs-2"])
    save_bundle(sign(read_bundle(out), KEY), out)
    return out.read_bytes()


def test_a_cumulative_bundle_takes_the_place_of_the_one_before(
    cluster: Cluster, target: Target, built: Path, better: bytes, start_agent: StartAgent
) -> None:
    """An edit to a bundle that replaces the first one leads each thread over in one step, never by the original."""
    add_pod(cluster, target)
    cluster.add_config_map(better, "better")
    with start_agent():
        apply(cluster, built)
        cluster.wait_condition("Ready", "Patched")
        changes = target.tally()["changes"]
        cluster.edit(bundle={"configMap": {"name": "better"}})
        wait(lambda: cluster.live_patch()["status"].get("bundle", {}).get("name") == "better", "taken up")
        cluster.wait_condition("Ready", "Patched", seconds=60)
        target.tally()
        time.sleep(0.5)
        now = target.tally()
        assert (now["changes"], now["seen"]) == (changes + 1, 1 << 3)
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(cluster.gone, "reverted and gone")
    assert runs(target) == "old"


def test_a_replacement_that_stands_is_taken_back_as_a_whole(
    cluster: Cluster, target: Target, built: Path, better: bytes, start_agent: StartAgent
) -> None:
    """A LivePatch that is deleted in the middle of a replacement leaves neither of the two patches."""
    add_pod(cluster, target)
    cluster.add_config_map(better, "better")
    with start_agent():
        apply(cluster, built, strategy={"threadDeadlineSeconds": 2})
        cluster.wait_condition("Ready", "Patched")
        target.ask("handle")
        cluster.edit(bundle={"configMap": {"name": "better"}})
        cluster.wait_condition("Reconciling", "WaitingForThreads", seconds=40)
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(lambda: inside(target, built).get("better") in {None, "reverting"}, "it goes back", seconds=60)
        target.ask("leave")
        wait(lambda: not inside(target, built), "both are taken back", seconds=60)
        assert runs(target) == "old"


def inside(target: Target, folder: Path) -> dict[str, str]:
    """Return the patches that the process itself knows of, and their phases."""
    (event,) = run(folder, op="status", pid=target.child.pid).events
    return {patch["name"]: patch["phase"] for patch in event["patches"]}


def test_revert_is_not_forgotten_while_the_agent_is_away(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """The LivePatch goes while no agent runs; the agent that comes later reverts."""
    add_pod(cluster, target)
    with start_agent():
        apply(cluster, built)
        cluster.wait_condition("Ready", "Patched")
    cluster.api.delete(cluster.path("livepatches", "lp"))
    wait(cluster.gone, "not waited for")
    assert runs(target) == "new"
    with start_agent():
        wait(lambda: not cluster.api.exists(cluster.node_path(0)), "reverted and cleared")
    assert runs(target) == "old"


def test_new_process_in_the_container_is_patched(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """A process that appears in a patched container is found by itself; one that ends is forgotten."""
    add_pod(cluster, target)
    with start_agent():
        apply(cluster, built)
        cluster.wait_condition("Ready", "Patched")
        with in_container([built / "pairs", "0", "3"]) as other:
            group = Path(f"/proc/{target.child.pid}/cgroup").read_text().split(":pids:")[-1].split()[0]
            (CGROUP / group.lstrip("/") / "cgroup.procs").write_text(str(other.child.pid))
            wait(lambda: runs(other) == "new", "the new process is patched")
            wait(lambda: cluster.live_patch()["status"]["threads"]["total"] > 8, "and counted")
        wait(lambda: cluster.live_patch()["status"]["threads"]["total"] < 8, "and forgotten")


def test_another_build_is_not_applicable(
    cluster: Cluster, built: Path, tmp_path: Path, start_agent: StartAgent
) -> None:
    """A process of another build is left alone, and the status says so."""
    other = forge.compile_program(TARGETS / "pairs.c", tmp_path / "pairs", "-DOTHER_BUILD", "-O1")
    with in_container([other, "1", "1"]) as one, start_agent():
        add_pod(cluster, one)
        apply(cluster, built)
        cluster.wait_condition("Ready", "NotApplicable")
        assert runs(one) == "old"


def test_two_live_patches_of_one_bundle(cluster: Cluster, target: Target, built: Path, start_agent: StartAgent) -> None:
    """A patch that two LivePatches want stays until the last of them is deleted."""
    add_pod(cluster, target)
    with start_agent():
        apply(cluster, built)
        cluster.apply("second")
        cluster.wait_condition("Ready", "Patched")
        cluster.wait_condition("Ready", "Patched", "second")
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(cluster.gone, "the first is gone")
        assert runs(target) == "new"
        cluster.api.delete(cluster.path("livepatches", "second"))
        wait(lambda: cluster.gone("second"), "the second is gone")
        assert runs(target) == "old"


def test_traced_process_is_refused_and_heals(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """Somebody else's tracer is a refusal with its reason; when it is gone, the agent's next try succeeds."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not there to trace with")
    add_pod(cluster, target)
    command = ["gdb", "-q", "-nx", "-p", str(target.child.pid)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with start_agent(), subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **quiet) as tracer:
        wait(lambda: "TracerPid:\t0" not in Path(f"/proc/{target.child.pid}/status").read_text(), "traced")
        apply(cluster, built)
        cluster.wait_condition("Stalled", "AlreadyTraced")
        tracer.communicate("detach\nquit\n", timeout=20)
        cluster.wait_condition("Ready", "Patched", seconds=40)


def test_agent_trusts_no_operator(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent, tmp_path: Path
) -> None:
    """What the operator let in is refused by an agent with other keys, and applied by one with the same."""
    add_pod(cluster, target)
    others = tmp_path / "others"
    others.mkdir()
    with start_agent(PODGRAFT_TRUST_DIR=str(write_trust(others, STRANGER))):
        apply(cluster, built)
        stalled = cluster.wait_condition("Stalled", "UntrustedSignature")
        assert "trusted keys: " + key_id(STRANGER.public_key())[:16] in stalled["message"]
        assert report(cluster)["phase"] == "Refused"
        assert runs(target) == "old"
    with start_agent():
        cluster.wait_condition("Ready", "Patched")
    # What has been fetched under one trust is no ticket under another.
    with start_agent(PODGRAFT_TRUST_DIR=str(others)):
        assert runs(target) == "new", "what is patched stays"
        cluster.api.delete(cluster.path("livepatches", "lp"))
        wait(cluster.gone, "a revert needs no trust")
    assert runs(target) == "old"


def test_agent_refuses_what_was_changed_on_the_way(
    cluster: Cluster, target: Target, built: Path, start_agent: StartAgent
) -> None:
    """No signatures, and those of another bundle, stop the agent; the right ones let it go on."""
    add_pod(cluster, target)
    apply(cluster, built)
    digest = cluster.wait_items(0)[0]["bundle"]["digest"]
    path = f"/api/v1/namespaces/{SYSTEM}/configmaps/{signatures_name(digest)}"
    right = cluster.api.get(path)["data"]
    foreign = {one.key: one.ed25519 for one in decode(make_graft("another")).signatures}
    cluster.api.delete(path)
    with start_agent():
        cluster.wait_condition("Stalled", "UnsignedBundle")
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": path.rsplit("/", 1)[1]}}
        cluster.api.create(path.rsplit("/", 1)[0], body | {"data": foreign})
        cluster.wait_condition("Stalled", "BadSignature")
        assert runs(target) == "old"
        cluster.api.patch(path, {"data": right})
        cluster.wait_condition("Ready", "Patched", seconds=40)
