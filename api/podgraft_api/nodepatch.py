"""NodePatch: the work of one node. The operator alone writes its spec, that node's agent its status."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from podgraft_api.model import SHARED, Count, Digest, Int64, Model, Report

PLURAL = "nodepatches"
MAX_PROCESSES = 32
MAX_STRAGGLERS = 10
# Each list has one writer, who writes the whole of it. As a map by id, every field of every item would have a place in
# metadata.managedFields: nearly half of the object, computed anew with each write.
WHOLE: dict[str, JsonValue] = {"x-kubernetes-list-type": "atomic"}


class Desired(StrEnum):
    """What an item asks for. An item that is removed asks for nothing: what is in the process stays."""

    APPLIED = "Applied"
    REVERTED = "Reverted"


class Phase(StrEnum):
    """Where a process, or an item as the worst of its processes, stands."""

    PENDING = "Pending"
    APPLYING = "Applying"
    APPLIED = "Applied"
    REVERTING = "Reverting"
    REVERTED = "Reverted"
    NOT_APPLICABLE = "NotApplicable"
    REFUSED = "Refused"
    FAILED = "Failed"


class LivePatchRef(Model):
    """The LivePatch that an item belongs to."""

    namespace: str
    name: str
    uid: str


class PodRef(Model):
    """A pod on this node."""

    namespace: str
    name: str
    uid: str


class ContainerRef(Model):
    """A running container; id without its scheme (containerd://)."""

    name: str
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")]


class BundleRef(Model):
    """A bundle that the operator has stored; the agent checks that the chunks have this digest."""

    digest: Digest
    chunks: Annotated[int, Field(ge=1, le=256, description="number of ConfigMaps that hold it")]
    name: Annotated[str, Field(description="name of the patch inside the process, needed for a revert")]
    build_id: Annotated[str, Field(description="build id of the module that is patched")]
    replaces: Annotated[
        tuple[str, ...],
        Field(
            max_length=64,
            description="names of the patches that go when this one is in; left out where there are none",
            exclude_if=lambda names: not names,
        ),
    ] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What a revert has to take back: from a half-done replacement it leads to what was there before."""
        return (self.name, *self.replaces)


Points = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s]+$")], ...], Field(max_length=16)
]


class Baseline(Model):
    """How a pod was when it was begun; for the operator's health gate, of no meaning to the agent."""

    ready: bool
    restarts: Count


class Item(Model):
    """One LivePatch in one pod. version: metadata.generation of the NodePatch that last changed this item."""

    id: Annotated[str, Field(max_length=128, description="LivePatch uid, a slash, pod uid")]
    version: Int64
    desired: Desired
    live_patch: Annotated[LivePatchRef, SHARED]
    bundle: Annotated[BundleRef, SHARED]
    pod: PodRef
    containers: Annotated[tuple[ContainerRef, ...], Field(min_length=1, max_length=64)]
    thread_deadline_seconds: Annotated[int, Field(ge=1, le=3600)] = 30
    points: Points = ()
    baseline: Annotated[Baseline, SHARED] | None = None


class NodePatchSpec(Model):
    """All work of the node; the whole list at once, so that a forgotten item cannot exist."""

    items: Annotated[
        tuple[Item, ...],
        Field(
            max_length=4096,
            json_schema_extra=WHOLE,
        ),
    ] = ()


class Straggler(Report):
    """A thread that has not migrated, and what an operator needs to find out why; tid 0: a call without a thread."""

    tid: int
    name: str
    why: str
    function: str | None = None
    syscall: str | None = None
    waited_seconds: Annotated[float, Field(ge=0)] = 0.0

    @property
    def who(self) -> str:
        """Name it for a human."""
        return f"thread {self.tid} ({self.name})" if self.tid else self.name


class ProcessReport(Report):
    """One process of a container. start_time: field 22 of /proc/PID/stat, in clock ticks since boot."""

    container: str
    pid: int
    start_time: Int64
    phase: Phase
    threads_total: Count = 0
    threads_migrated: Count = 0
    reason: str | None = None
    message: str | None = None
    max_held_microseconds: Annotated[float, Field(ge=0)] = 0.0
    stragglers: Annotated[tuple[Straggler, ...], Field(max_length=MAX_STRAGGLERS)] | None = None


class ItemReport(Report):
    """The agent's answer to one item; it counts only while `version` is the item's version."""

    id: Annotated[str, Field(max_length=128)]
    version: Int64
    phase: Phase
    desired: Literal["Applied", "Reverted"] = "Applied"
    process_count: Count = 0
    threads_total: Count = 0
    threads_migrated: Count = 0
    max_held_microseconds: Annotated[float, Field(ge=0)] = 0.0
    reason: str | None = None
    message: str | None = None
    processes: Annotated[
        tuple[ProcessReport, ...],
        Field(max_length=MAX_PROCESSES, description="a sample, troubled ones first"),
    ] = ()


class NodePatchStatus(Report):
    """What the agent did. The heartbeat is renewed while work is under way: then silence means something."""

    observed_generation: Int64 = -1
    agent_version: str | None = None
    heartbeat: Annotated[str, Field(json_schema_extra={"format": "date-time"})] | None = None
    items: Annotated[
        tuple[ItemReport, ...],
        Field(
            max_length=4096,
            json_schema_extra=WHOLE,
        ),
    ] = ()


class NodePatch(Model):
    """The live-patch work of one node; named as the node."""

    spec: NodePatchSpec = NodePatchSpec()
    status: NodePatchStatus | None = None


def item_id(live_patch_uid: str, pod_uid: str) -> str:
    """Return the one id under which a LivePatch in a pod is known."""
    return f"{live_patch_uid}/{pod_uid}"


def chunk_name(digest: str, index: int) -> str:
    """Return the name of the ConfigMap that holds chunk `index` of a bundle."""
    return f"podgraft-bundle-{digest.removeprefix('sha256:')}-{index}"


def signatures_name(digest: str) -> str:
    """Return the name of the ConfigMap that holds the signatures of a bundle: key id -> base64 of the signature.

    They are not in the chunks: those never change, and a bundle may be signed once more.
    """
    return f"podgraft-bundle-{digest.removeprefix('sha256:')}-signatures"


CHUNK_KEY = "chunk"
