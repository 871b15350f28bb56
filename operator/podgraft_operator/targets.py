"""Which running containers a LivePatch means: pods by label, containers by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from podgraft_api.livepatch import LabelSelector
from podgraft_api.nodepatch import ContainerRef, PodRef
from podgraft_api.selectors import mismatch

# kubernetes.io, "Labels and Selectors", syntax and character set.
_NAME = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Container:
    """A container that runs now. started: RFC 3339, UTC, seconds: the order of the texts is that of time."""

    name: str
    id: str
    started: str


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

    @property
    def ref(self) -> PodRef:
        """The reference that an item carries."""
        return PodRef(namespace=self.namespace, name=self.name, uid=self.uid)


# What is no such id (a virtual node's) has no processes that an agent could find.
_ID = re.compile(r"[0-9a-f]{12,64}")


def parse_pod(body: Mapping[str, Any]) -> Pod | None:
    """Return the pod, or None while it has no node or no running container."""
    meta, status = body["metadata"], body.get("status", {})
    node = body.get("spec", {}).get("nodeName")
    passing = _passing(body.get("spec", {}))
    running = tuple(
        Container(one["name"], one["containerID"].rpartition("/")[2], one["state"]["running"]["startedAt"])
        for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
        for one in status.get(kind) or ()
        if one["name"] not in passing
        and one.get("state", {}).get("running")
        and _ID.fullmatch(one.get("containerID", "").rpartition("/")[2])
    )
    if not node or not running:
        return None
    labels = dict(meta.get("labels") or {})
    return Pod(meta["namespace"], meta["name"], meta["uid"], node, labels, running, "deletionTimestamp" in meta)


def _passing(spec: Mapping[str, Any]) -> frozenset[str]:
    """Return the init containers that end by themselves; those that are sidecars stay (kubernetes.io, "Sidecars").

    A patch would meet them in the middle of their one task, and the pod would wait for its end as for a failure.
    """
    return frozenset(one["name"] for one in spec.get("initContainers") or () if one.get("restartPolicy") != "Always")


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
        ContainerRef(name=one.name, id=one.id)
        for one in sorted(pod.containers, key=lambda one: one.name)
        if (not names or one.name in names) and (started_before is None or one.started <= started_before)
    )
