"""Which running containers a LivePatch means: pods by label, containers by name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from podgraft_api.livepatch import LabelSelector
from podgraft_api.nodepatch import ContainerRef, PodRef
from podgraft_api.selectors import mismatch
from podgraft_operator.placement import Target

# kubernetes.io, "Labels and Selectors", syntax and character set.
_NAME = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Container:
    """A container that runs now. started: RFC 3339, UTC, seconds: the order of the texts is that of time."""

    name: str
    id: str
    started: str

    @cached_property
    def ref(self) -> ContainerRef:
        """The reference that an item carries; made once, for every look needs it."""
        return ContainerRef(name=self.name, id=self.id)


@dataclass(frozen=True)
class Pod:
    """What the operator remembers of a pod; small, for there are many."""

    namespace: str
    name: str
    uid: str
    node: str
    labels: Mapping[str, str]
    containers: tuple[Container, ...]
    terminating: bool
    # Names of containers that ended and will be started again.
    down: tuple[str, ...] = ()
    ready: bool = True
    restarts: int = 0

    @cached_property
    def ref(self) -> PodRef:
        """The reference that an item carries; made once, for every look needs it."""
        return PodRef(namespace=self.namespace, name=self.name, uid=self.uid)


# What is no such id (a virtual node's) has no processes that an agent could find.
_ID = re.compile(r"[0-9a-f]{12,64}")


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Return the pod, or None while it has no node or never had a container that an agent could find."""
    meta, status = body["metadata"], body.get("status", {})
    node = body.get("spec", {}).get("nodeName")
    passing = _passing(body.get("spec", {}))
    kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    known = [one for kind in kinds for one in status.get(kind) or () if one["name"] not in passing and _id(one)]
    if not node or not known:
        return None
    running = tuple(
        Container(one["name"], _id(one), one["state"]["running"]["startedAt"])
        for one in known
        if one.get("state", {}).get("running")
    )
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        node=node,
        labels=dict(meta.get("labels") or {}),
        containers=running,
        terminating="deletionTimestamp" in meta,
        down=tuple(one["name"] for one in known if _comes_back(body["spec"], one)),
        ready=any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions") or ()),
        restarts=sum(one.get("restartCount", 0) for one in known),
    )


def _comes_back(spec: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
    """Return whether the kubelet will start a container that does not run again (kubernetes.io, "Pod Lifecycle")."""
    state = status.get("state", {})
    if "terminated" not in state:
        return "waiting" in state
    if any(one["name"] == status["name"] and one.get("restartPolicy") == "Always" for one in _initial(spec)):
        return True  # a sidecar
    policy, regular = spec.get("restartPolicy", "Always"), {one["name"] for one in spec.get("containers", ())}
    failed = state["terminated"].get("exitCode", 0) != 0
    return status["name"] in regular and (policy == "Always" or (policy == "OnFailure" and failed))


def _id(status: Mapping[str, Any]) -> str:
    """Return the container id without its scheme, or nothing when it is no id."""
    found: str = status.get("containerID", "").rpartition("/")[2]
    return found if _ID.fullmatch(found) else ""


def _passing(spec: Mapping[str, Any]) -> frozenset[str]:
    """Return the init containers that end by themselves; those that are sidecars stay (kubernetes.io, "Sidecars").

    A patch would meet them in the middle of their one task, and the pod would wait for its end as for a failure.
    """
    return frozenset(one["name"] for one in _initial(spec) if one.get("restartPolicy") != "Always")


def _initial(spec: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return spec.get("initContainers") or ()


def selector_problem(selector: LabelSelector) -> str | None:
    """Return what is wrong with a selector that the schema let through, or None."""
    for key, value in (selector.match_labels or {}).items():
        wrong = _key_problem(key) or _value_problem(value)
        if wrong:
            return f"matchLabels: {wrong}"
    for one in selector.match_expressions or ():
        wrong = _key_problem(one.key) or next(filter(None, map(_value_problem, one.values or ())), None)
        if wrong:
            return f"matchExpressions: {wrong}"
    return None


def _key_problem(key: str) -> str | None:
    prefix, slash, name = key.rpartition("/")
    good = _NAME.fullmatch(name) and (not slash or _PREFIX.fullmatch(prefix))
    return None if good else f"{key!r} is no label key"


def _value_problem(value: str) -> str | None:
    return None if value == "" or _NAME.fullmatch(value) else f"{value!r} is no label value"


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Return whether a selector means a pod with these labels."""
    return mismatch(selector, labels) is None


def chosen(pod: Pod, names: tuple[str, ...], started_before: str | None) -> tuple[ContainerRef, ...]:
    """Return the pod's containers that are named (all when no name is given) and started early enough."""
    return tuple(
        one.ref
        for one in sorted(pod.containers, key=lambda one: one.name)
        if (not names or one.name in names) and (started_before is None or one.started <= started_before)
    )


def target(pod: Pod, names: tuple[str, ...], started_before: str | None) -> Target | None:
    """Return a selected pod as a target, also while the containers meant are down; None when it has none of them."""
    containers = chosen(pod, names, started_before)
    down = not chosen(pod, names, None) and any(not names or one in names for one in pod.down)
    if not containers and not down:
        return None
    return Target(pod.node, pod.ref, containers, ready=pod.ready, restarts=pod.restarts, labels=pod.labels)
