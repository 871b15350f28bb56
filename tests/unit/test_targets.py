"""Which containers of a pod are meant: those that run and stay."""

from typing import Any

from podgraft_operator.targets import chosen, parse_pod

Json = dict[str, Any]
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def told(name: str, digit: str, state: Json | None = None) -> Json:
    return {"name": name, "containerID": f"cri-o://{digit * 64}", "state": RUNNING if state is None else state}


def pod(**spec: Any) -> Json:
    """Return a pod with every kind of container, as the kubelet tells of it."""
    meta = {"name": "p", "namespace": "shop", "uid": "u", "labels": {"app": "redis"}}
    whole = {
        "nodeName": "n1",
        "containers": [{"name": "redis"}, {"name": "done"}],
        "initContainers": [{"name": "migrate"}, {"name": "proxy", "restartPolicy": "Always"}],
        "ephemeralContainers": [{"name": "debugger"}],
    } | spec
    status = {
        "phase": "Running",
        "containerStatuses": [told("redis", "a"), told("done", "b", {"terminated": {"exitCode": 0}})],
        "initContainerStatuses": [told("migrate", "c"), told("proxy", "d")],
        "ephemeralContainerStatuses": [told("debugger", "e")],
    }
    return {"metadata": meta, "spec": whole, "status": status}


def names(body: Json, *wanted: str) -> list[str]:
    found = parse_pod(body)
    assert found is not None
    return [one.name for one in chosen(found, wanted, None)]


def test_sidecars_and_ephemeral_containers_are_meant() -> None:
    """A native sidecar (an init container that restarts always) and a debug container are; one that ends is not."""
    assert names(pod()) == ["debugger", "proxy", "redis"]


def test_an_init_container_is_left_alone_even_by_name() -> None:
    """It ends by itself; what is named and passes is not waited for."""
    assert names(pod(), "migrate", "redis") == ["redis"]
    assert names(pod(), "proxy") == ["proxy"]


def test_host_pid_changes_nothing() -> None:
    """The containers of a pod that sees the host's processes are its own, by their ids."""
    assert names(pod(hostPID=True, shareProcessNamespace=True)) == ["debugger", "proxy", "redis"]


def test_static_pod_is_known_by_its_mirror() -> None:
    """A static pod's processes carry another pod uid in their paths than its mirror: the container id alone counts."""
    body = pod()
    body["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "0123", "kubernetes.io/config.source": "file"}
    found = parse_pod(body)
    assert found is not None
    assert found.ref.uid == "u"
    assert {one.id for one in found.containers} == {"a" * 64, "d" * 64, "e" * 64}


def test_ids_of_every_runtime() -> None:
    """The scheme is the runtime's; what has no such id has no processes on this node."""
    for scheme in ("containerd", "cri-o", "docker"):
        body = pod()
        body["status"]["containerStatuses"][0]["containerID"] = f"{scheme}://{'f' * 64}"
        assert "redis" in names(body)
    body["status"]["containerStatuses"][0]["containerID"] = "virtual://not-an-id"
    assert "redis" not in names(body)
