"""How a LivePatch is rolled out: how many pods at a time, in which steps, and what must hold on the way."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from podgraft_api.model import Model, rules

MAX_STEPS = 20

Percent = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            # The API server estimates the cost of a rule by the longest value.
            "maxLength": 4,
            **rules(
                (
                    "type(self) == int ? self >= 1 : self.matches('^([1-9][0-9]?|100)%$')",
                    "must be a positive number or a percentage from 1% to 100%",
                )
            ),
        }
    ),
]


class Pause(Model):
    """A wait; without seconds it lasts until somebody resumes (annotation podgraft.dev/resumeRequestedAt)."""

    seconds: Annotated[int | None, Field(ge=1, le=30 * 24 * 3600)] = None


class Step(Model):
    """One step: so many pods patched, or a pause."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(("has(self.pods) != has(self.pause)", "a step is either pods or pause"))
    }

    pods: Annotated[
        Percent | None, Field(description="pods that are patched at the end of the step, those before counted in")
    ] = None
    pause: Pause | None = None


class Prometheus(Model):
    """A query whose every value must lie between the limits; one that is not answered has failed."""

    model_config = Model.model_config | {
        "json_schema_extra": rules(
            ("has(self.atLeast) || has(self.atMost)", "a limit must be given: atLeast, atMost, or both"),
            ("!has(self.atLeast) || !has(self.atMost) || self.atLeast <= self.atMost", "atLeast is above atMost"),
        )
    }

    url: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=r"^https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?$",
            description="base address of a Prometheus server that the operator's settings allow",
        ),
    ]
    query: Annotated[str, Field(min_length=1, max_length=4096, description="PromQL, evaluated at the moment")]
    at_least: float | None = None
    at_most: float | None = None


class Health(Model):
    """What must hold in every pod that the rollout has begun, from its first pod to its end."""

    ready: Annotated[bool, Field(description="a pod that was ready before it was patched must stay ready")] = True
    max_restarts: Annotated[
        int | None, Field(ge=0, description="container restarts since the patch, all pods together; absent: any number")
    ] = None
    prometheus: Prometheus | None = None


# Steps of one kind can be compared with each other; a number and a percentage cannot, for pods come and go.
NUMBERS = "self.filter(one, has(one.pods) && type(one.pods) == int).map(one, int(one.pods)).isSorted()"
SHRINKING = "pods of later steps must not be fewer"


class Strategy(Model):
    """How fast."""

    max_parallel: Annotated[
        Percent, Field(description="pods in transition at a time, a number or a part of the matched pods")
    ] = "25%"
    steps: Annotated[
        tuple[Step, ...],
        Field(
            max_length=MAX_STEPS,
            description="after the last step all pods are patched; without steps, at once",
            json_schema_extra=rules((NUMBERS, SHRINKING)),
        ),
    ] = ()
    thread_deadline_seconds: Annotated[
        int, Field(ge=1, le=3600, description="how long one attempt waits for a thread before it is reported")
    ] = 30
    progress_deadline_seconds: Annotated[
        int,
        Field(ge=1, le=30 * 24 * 3600, description="a rollout in which no further pod was done for so long has failed"),
    ] = 600
    on_failure: Annotated[
        Literal["Pause", "Revert"],
        Field(description="Pause: begin nothing more; Revert: back to the bundle before, or to the original code"),
    ] = "Pause"
    health: Health | None = None

    @model_validator(mode="after")
    def _percentages_grow(self) -> Self:
        """Refuse what the schema cannot: CEL would need to parse texts, at a cost that the API server forbids."""
        percentages = [int(one.pods.removesuffix("%")) for one in self.steps if isinstance(one.pods, str)]
        if percentages != sorted(percentages):
            raise ValueError(f"steps: {SHRINKING}")
        return self
