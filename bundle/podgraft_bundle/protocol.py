"""The engine protocol: one request as JSON on standard input, events as JSON lines on standard output."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from podgraft_bundle.errors import Reason
from podgraft_bundle.manifest import HookKind


class Message(BaseModel):
    """A part of the protocol; unknown fields are refused on both sides."""

    model_config = ConfigDict(extra="forbid")


class Request(Message):
    """What the CLI or the agent asks of one engine process. deadline in seconds."""

    op: Literal["check", "apply", "status", "revert", "sites"]
    pid: Annotated[int, Field(ge=0)] = 0
    start_time: int | None = Field(default=None, description="field 22 of /proc/PID/stat; guards against pid reuse")
    bundle: str | None = Field(default=None, description="path of the .graft file (check, apply, sites)")
    file: str | None = Field(default=None, description="the module as a file, in place of a process (sites)")
    name: str | None = Field(default=None, description="name of the patch in the process (revert)")
    skip_hooks: bool = Field(default=False, description="call no hook of the patch (revert)")
    deadline: Annotated[float, Field(gt=0, le=86400)] = 10.0
    points: list[str] = Field(default=[], max_length=16, description="functions declared points of quiescence (apply)")

    @model_validator(mode="after")
    def _is_about_something(self) -> Self:
        if (self.file is not None) != (self.op == "sites") or bool(self.pid) == (self.op == "sites"):
            raise ValueError("the request for sites names a file, every other one a process")
        return self


class Site(Message):
    """Where one replaced function is entered, and by which rung of the ladder (design 3.2)."""

    function: str
    address: int
    rung: str
    length: int


class Problem(Message):
    """One reason against patching."""

    reason: Reason
    detail: str
    hint: str


class Inspected(Message):
    """The patchability report; `problems` is empty when the process can be patched."""

    event: Literal["inspected"] = "inspected"
    pid: int
    comm: str
    module: str
    build_id: str
    base: int
    threads: int
    sites: list[Site] = []
    problems: list[Problem] = []


class Surveyed(Message):
    """Where the functions of a bundle would be entered, as far as the file of the module tells."""

    event: Literal["surveyed"] = "surveyed"
    sites: list[Site] = []
    problems: list[Problem] = []


class Prepared(Message):
    """The new code lies aside, nothing that runs sees it. carrier is None when a helper was adopted."""

    event: Literal["prepared"] = "prepared"
    generation: int
    carrier: int | None
    carrier_held_us: float | None
    area: int


class Switched(Message):
    """The patched pages are in place; every thread still takes the old code."""

    event: Literal["switched"] = "switched"
    pages: int
    sites: int


class HookRan(Message):
    """A hook of the patch has been called. result: what it returned; why: what went wrong, for humans."""

    event: Literal["hook"] = "hook"
    kind: HookKind
    function: str
    ok: bool
    result: int | None = None
    why: str | None = None
    seconds: float


class Migrated(Message):
    """One thread has changed generation. held_us is how long it was stopped; 0 for a thread that was never held."""

    event: Literal["migrated"] = "migrated"
    tid: int
    name: str
    how: Literal["point", "wakeup", "sleeping", "running", "inherited"]
    held_us: float
    migrated: int
    total: int


class Waiting(Message):
    """A thread that cannot migrate now, with what an operator needs to find out why; tid 0: a call without a thread."""

    event: Literal["waiting"] = "waiting"
    tid: int
    name: str
    why: str
    function: str | None = None
    call_site: int | None = None
    syscall: str | None = None
    waited_s: float = 0.0


class Ended(Message):
    """How a transition ended: threads by the way they went, the longest hold of one thread, how long it took.

    helpers: threads of ours that it took; more than one means that the engine got no processor for seconds.
    """

    name: str
    generation: int
    threads: int
    how: dict[str, int]
    helpers: int = 1
    max_held_us: float
    seconds: float


class Finalized(Ended):
    """Every thread runs the new code; stubs have become jumps."""

    event: Literal["finalized"] = "finalized"


class Reverted(Ended):
    """Every thread runs the old code; the pages are the file's again."""

    event: Literal["reverted"] = "reverted"


class PatchStatus(Message):
    """One patch as the state in the target tells it."""

    name: str
    version: str
    digest: str
    phase: Literal["migrating", "finalized", "reverting", "lost"]
    generation: int
    functions: list[str]
    cves: list[str] = []


class Status(Message):
    """What is in the process, read from the process."""

    event: Literal["status"] = "status"
    pid: int
    generation: int
    patches: list[PatchStatus]
    helper: bool = False


class Refused(Message):
    """The program's code and threads are as they were."""

    event: Literal["refused"] = "refused"
    reason: Reason
    detail: str
    hint: str


class Failed(Message):
    """The work stopped; the target runs on consistently, `podgraft status` says where it stands."""

    event: Literal["failed"] = "failed"
    reason: Reason
    detail: str
    hint: str


Event = Annotated[
    Inspected
    | Surveyed
    | Prepared
    | HookRan
    | Switched
    | Migrated
    | Waiting
    | Finalized
    | Reverted
    | Status
    | Refused
    | Failed,
    Field(discriminator="event"),
]
