"""What the operator takes of a pod."""

from typing import Any

import pytest

from podgraft_operator.targets import parse_pod, target

ID = "containerd://" + "ab" * 32
RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
CRASHED: dict[str, Any] = {"waiting": {"reason": "CrashLoopBackOff"}}
FAILED: dict[str, Any] = {"terminated": {"exitCode": 1}}
ENDED: dict[str, Any] = {"terminated": {"exitCode": 0}}


def pod(policy: str = "Always", restarts: int = 0, ready: str = "True", **states: dict[str, Any]) -> dict[str, Any]:
    """Return a pod object; a name that begins with init is that of an init container."""
    statuses = [
        {"name": name, "containerID": ID, "state": state, "restartCount": restarts} for name, state in states.items()
    ]
    return {
        "metadata": {"namespace": "shop", "name": "p", "uid": "u", "labels": {"app": "redis"}},
        "spec": {
            "nodeName": "n",
            "restartPolicy": policy,
            "containers": [{"name": one} for one in states if not one.startswith("init")],
        },
        "status": {
            "containerStatuses": [one for one in statuses if not one["name"].startswith("init")],
            "initContainerStatuses": [one for one in statuses if one["name"].startswith("init")],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }


@pytest.mark.parametrize(
    ("body", "names", "expected"),
    [
        (pod(redis=RUNNING), (), 1),
        (pod(redis=CRASHED), (), 0),
        (pod(redis=ENDED), (), 0),
        (pod("OnFailure", redis=FAILED), (), 0),
        (pod("OnFailure", redis=ENDED), (), None),
        (pod("Never", redis=FAILED), (), None),
        (pod(redis=CRASHED, sidecar=RUNNING), (), 1),
        (pod(redis=CRASHED, sidecar=RUNNING), ("redis",), 0),
        (pod(redis=RUNNING), ("other",), None),
        (pod(init=ENDED, redis=RUNNING), ("init",), None),
    ],
)
def test_containers_that_come_back_keep_their_pod(
    body: dict[str, Any], names: tuple[str, ...], expected: int | None
) -> None:
    """A pod whose containers are down for the moment stays a target, without containers; one without them is none."""
    parsed = parse_pod(body)
    assert parsed is not None
    found = target(parsed, names, None)
    assert (len(found.containers) if found is not None else None) == expected


def test_late_containers_are_no_target() -> None:
    """With repatch false a container that runs, but started too late, is not taken for one that is down."""
    parsed = parse_pod(pod(redis=RUNNING))
    assert parsed is not None
    assert target(parsed, (), "2025-01-01T00:00:00Z") is None


def test_readiness_and_restarts() -> None:
    """Both are those of the whole pod."""
    parsed = parse_pod(pod(redis=RUNNING, sidecar=RUNNING, restarts=2, ready="False"))
    assert parsed is not None
    assert (parsed.ready, parsed.restarts) == (False, 4)


def test_a_sidecar_that_is_down_comes_back() -> None:
    """An init container that restarts always is started again whatever the pod's policy says."""
    body = pod("Never", init=FAILED)
    body["spec"]["initContainers"] = [{"name": "init", "restartPolicy": "Always"}]
    parsed = parse_pod(body)
    assert parsed is not None
    found = target(parsed, (), None)
    assert found is not None
    assert found.containers == ()
