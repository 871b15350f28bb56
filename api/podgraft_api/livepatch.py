"""LivePatch: what is patched, where, and how fast. Written by users; its status by the operator."""

from typing import Annotated, Literal

from pydantic import Field

from podgraft_api.conditions import Condition
from podgraft_api.model import Count, Int64, Model, Report, rules
from podgraft_api.nodepatch import Points, Straggler
from podgraft_api.progress import RolloutStatus
from podgraft_api.strategy import Strategy

PLURAL = "livepatches"
FINALIZER = "podgraft.dev/revert"
MAX_FAILURES = 20
MAX_STRAGGLERS = 20


class ConfigMapSource(Model):
    """A bundle in a ConfigMap of the LivePatch's namespace, as binaryData or as base64 text in data."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    key: Annotated[str, Field(min_length=1, max_length=253)] = "bundle.graft"


class BundleSource(Model):
    """Where the bundle comes from; exactly one of the three."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "[has(self.oci), has(self.configMap), has(self.inline)].filter(x, x).size() == 1",
                "exactly one of oci, configMap and inline must be given",
            )
        )
    }

    oci: Annotated[
        str | None,
        Field(
            max_length=1024,
            pattern=r"^[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$",
            description="registry/repository@sha256:digest; a tag is no name for code",
        ),
    ] = None
    config_map: ConfigMapSource | None = None
    inline: Annotated[
        str | None,
        Field(
            min_length=4,
            max_length=700_000,
            pattern=r"^[A-Za-z0-9+/\s]+={0,2}\s*$",
            description="the bundle in base64; for small ones",
        ),
    ] = None


class Requirement(Model):
    """One expression of a label selector."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                "self.operator in ['In', 'NotIn'] == (has(self.values) && self.values.size() > 0)",
                "values must be given for In and NotIn, and for them alone",
            )
        )
    }

    key: Annotated[str, Field(min_length=1, max_length=317)]
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=64)] | None = None


SELECTS = " || ".join(f"(has(self.{one}) && self.{one}.size() > 0)" for one in ("matchLabels", "matchExpressions"))


class LabelSelector(Model):
    """Pods by label, as in meta/v1; an empty selector would mean every pod and is refused."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            (
                SELECTS,
                "an empty selector would match every pod of the namespace; name at least one label",
            )
        )
    }

    match_labels: (
        Annotated[
            dict[str, Annotated[str, Field(max_length=253)]],
            Field(json_schema_extra={"maxProperties": 64}),
        ]
        | None
    ) = None
    match_expressions: Annotated[tuple[Requirement, ...], Field(max_length=64)] | None = None


class LivePatchSpec(Model):
    """What a user wants."""

    bundle: BundleSource
    selector: LabelSelector
    containers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(
            max_length=64,
            description="container names; default: every container with a process that maps the module",
        ),
    ] = ()
    paused: Annotated[bool, Field(description="begin nothing new; what is under way is finished")] = False
    strategy: Strategy = Strategy()
    points: Annotated[
        Points,
        Field(
            description="functions that are points of quiescence: a thread that comes by migrates, whatever is on its "
            "stack; for code that a long-lived loop never leaves"
        ),
    ] = ()
    repatch: Annotated[
        bool,
        Field(
            description="patch containers that start later, too; "
            "false: only those that ran when the LivePatch was created"
        ),
    ] = True
    deletion_policy: Annotated[
        Literal["Revert", "Keep"], Field(description="what deleting the LivePatch does to patched processes")
    ] = "Revert"


class BundleInfo(Report):
    """The bundle that was resolved."""

    digest: str
    name: str
    version: str
    cves: tuple[str, ...] = ()
    signed_by: Annotated[tuple[str, ...], Field(description="ids of the trusted keys that signed it")] = ()


class PodCounts(Report):
    """Pods by state; not_applicable ones run no process of the build that the bundle is for."""

    matched: Count = 0
    patched: Count = 0
    pending: Count = 0
    failed: Count = 0
    not_applicable: Count = 0


class ThreadCounts(Report):
    """Threads of all matched processes."""

    total: Count = 0
    migrated: Count = 0


class Failure(Report):
    """A process, or a whole pod where pid is absent, that could not be patched or reverted."""

    pod: str
    container: str | None = None
    pid: int | None = None
    reason: str
    message: str = ""


class PodStraggler(Straggler):
    """A thread that has not migrated yet, with its process."""

    pod: str
    container: str
    pid: int


class Summary(Report):
    """What kubectl get prints."""

    cve: str = ""
    patched: str = ""
    threads: str = ""


class LivePatchStatus(Report):
    """What the operator saw. observedGeneration -1 (the default) makes kstatus wait for the operator."""

    observed_generation: Int64 = -1
    bundle: BundleInfo | None = None
    pods: PodCounts | None = None
    threads: ThreadCounts | None = None
    summary: Summary | None = None
    rollout: RolloutStatus | None = None
    max_held_microseconds: Annotated[float, Field(ge=0)] | None = None
    failures: Annotated[tuple[Failure, ...], Field(max_length=MAX_FAILURES)] | None = None
    failure_count: Count | None = None
    stragglers: Annotated[tuple[PodStraggler, ...], Field(max_length=MAX_STRAGGLERS)] | None = None
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()


class LivePatch(Model):
    """A fix for running containers: a bundle, the pods it is for, and how it is rolled out."""

    spec: LivePatchSpec
    status: LivePatchStatus | None = None
