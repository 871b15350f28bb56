"""How far a rollout has come: the memory of the operator, which forgets everything when it is restarted."""

from typing import Annotated

from pydantic import Field

from podgraft_api.model import Count, Report
from podgraft_api.nodepatch import BundleRef

# A change of the value is the request, as with Flux's reconcile.fluxcd.io/requestedAt. Any text, usually a time.
RESUME = "podgraft.dev/resumeRequestedAt"
REVERT = "podgraft.dev/revertRequestedAt"

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class RolloutFailure(Report):
    """Why a rollout stopped.

    reverting: once true it stays so until another rollout begins. everywhere: every pod had been begun, so that pods
    and containers that start later have nothing to fear from it.
    """

    reason: str
    message: str = ""
    at: Time
    reverting: bool = False
    everywhere: bool = False


class RolloutStatus(Report):
    """Where the rollout of one bundle stands.

    digest, steps: what is rolled out, and a hash of the steps: a change of either begins anew.
    step: index of the current step; the number of steps when all are done.
    complete: every pod was patched; pods that come later are patched without steps.
    pause_until: absent in a pause that only a resume ends.
    fulfilled_at: since when only Prometheus keeps the step from its end.
    progressed_at: when a further pod was last done; done and matched are the counts of that moment. Absent while
    nothing is awaited.
    forgiven_restarts: restarts that somebody has seen and resumed in spite of.
    stable: the bundle of the last complete rollout. withdrawn: a bundle that was reverted and is still in pods.
    """

    digest: str
    steps: str = ""
    step: Count = 0
    complete: bool = False
    pause_began: Time | None = None
    pause_until: Time | None = None
    fulfilled_at: Time | None = None
    progressed_at: Time | None = None
    done: Count = 0
    matched: Count = 0
    forgiven_restarts: Count = 0
    failure: RolloutFailure | None = None
    stable: BundleRef | None = None
    withdrawn: str | None = None
    handled_resume: str | None = None
    handled_revert: str | None = None
