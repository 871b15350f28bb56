"""What is told of LivePatches and pods: pure joins of resources, the same for people and for --json."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from podgraft_api.livepatch import BundleInfo, LabelSelector, LivePatchStatus, PodCounts, ThreadCounts
from podgraft_api.model import Report
from podgraft_api.nodepatch import ItemReport, ProcessReport
from podgraft_api.selectors import mismatch
from podgraft_bundle.errors import HINTS, Reason
from podgraft_cli.cluster import Placed

Json = dict[str, Any]
WAITS = "Waiting"
ASKED = "Asked"
NOT_SELECTED = "NotSelected"


class PodView(Report):
    """One pod of a LivePatch. phase: as the agent reports it, or Asked or Waiting before it does."""

    pod: str
    node: str | None = None
    phase: str
    desired: str = "Applied"
    reason: str | None = None
    message: str | None = None
    hint: str | None = None
    containers: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    threads_total: int = 0
    threads_migrated: int = 0
    max_held_microseconds: float = 0.0
    heartbeat: str | None = None
    processes: tuple[ProcessReport, ...] = ()


class PatchView(Report):
    """One LivePatch with its pods. pods None: no right to read them, so only the counts are known."""

    namespace: str
    name: str
    paused: bool
    leaving: bool
    up_to_date: bool
    state: str
    reason: str
    message: str
    bundle: BundleInfo | None = None
    counts: PodCounts = PodCounts()
    threads: ThreadCounts = ThreadCounts()
    pods: tuple[PodView, ...] | None = None
    status: LivePatchStatus

    @property
    def done(self) -> bool:
        """Whether every pod is as wanted."""
        return self.up_to_date and self.state == "Ready" and not self.leaving


def patch_view(body: Json, pods: Sequence[Json] | None, placed: Iterable[Placed] | None) -> PatchView:
    """Join a LivePatch with the pods that it selects and with its items on the nodes."""
    meta = body["metadata"]
    status = LivePatchStatus.model_validate(body.get("status") or {})
    true = next((one for one in status.conditions if one.status == "True"), None)
    mine = None if placed is None else {p.work.pod.uid: p for p in placed if p.work.live_patch.uid == meta["uid"]}
    views = None if mine is None else tuple(_pod_views(body, pods or (), mine))
    return PatchView(
        namespace=meta["namespace"],
        name=meta["name"],
        paused=bool(body["spec"].get("paused")),
        leaving="deletionTimestamp" in meta,
        up_to_date=status.observed_generation == meta["generation"],
        state=true.type if true is not None else "Unknown",
        reason=true.reason if true is not None else "NotSeenYet",
        message=true.message if true is not None else "the operator has not looked at it yet",
        bundle=status.bundle,
        counts=status.pods or PodCounts(),
        threads=status.threads or ThreadCounts(),
        pods=views,
        status=status,
    )


def _pod_views(body: Json, pods: Sequence[Json], mine: Mapping[str, Placed]) -> Iterable[PodView]:
    known = {one["metadata"]["uid"]: one for one in pods}
    for uid, one in sorted(mine.items(), key=lambda pair: pair[1].work.pod.name):
        yield pod_view(one, known.get(uid))
    for uid, pod in sorted(known.items(), key=lambda pair: str(pair[1]["metadata"]["name"])):
        if uid not in mine and (pod.get("status") or {}).get("phase") == "Running":
            yield waiting_view(body, pod)


def pod_view(placed: Placed, pod: Json | None) -> PodView:
    """Tell of a pod that an agent has been asked about."""
    work, report = placed.work, placed.report
    names = tuple(str(one["name"]) for one in work.containers)
    reason, message = trouble(report) if report is not None else (None, None)
    return PodView(
        pod=work.pod.name,
        node=placed.node,
        phase=report.phase.value if report is not None else ASKED,
        desired=work.desired,
        reason=reason,
        message=message or (None if report is not None else "the node's agent has not answered yet"),
        hint=hint(reason, message),
        containers=names,
        # Where processes were found, their containers' images; else those of all that were asked for.
        images=images(pod, ({one.container for one in report.processes} if report is not None else set()) or names),
        threads_total=report.threads_total if report is not None else 0,
        threads_migrated=report.threads_migrated if report is not None else 0,
        max_held_microseconds=report.max_held_microseconds if report is not None else 0.0,
        heartbeat=placed.heartbeat,
        processes=report.processes if report is not None else (),
    )


def waiting_view(body: Json, pod: Json) -> PodView:
    """Tell of a selected pod that no agent has been asked about yet."""
    status = LivePatchStatus.model_validate(body.get("status") or {})
    ready = next((one for one in status.conditions if one.type == "Ready"), None)
    names = tuple(body["spec"].get("containers") or ())
    if body["spec"].get("paused") or (ready is not None and ready.reason == "StepPaused"):
        reason, message = "Paused", "the LivePatch is paused: kubectl podgraft resume " + body["metadata"]["name"]
    elif not body["spec"].get("repatch", True):
        reason, message = (
            "Repatch",
            "it started after the LivePatch was created (repatch: false), or waits for its turn",
        )
    else:
        reason, message = "NotItsTurn", (ready.message if ready is not None else "the operator has not looked yet")
    return PodView(
        pod=pod["metadata"]["name"],
        node=(pod.get("spec") or {}).get("nodeName"),
        phase=WAITS,
        reason=reason,
        message=message,
        containers=names,
        images=images(pod, names),
    )


def trouble(report: ItemReport) -> tuple[str | None, str | None]:
    """Return reason and message of an item: its own, or those of its worst process."""
    said = [(one.reason, one.message) for one in report.processes]
    found = next(((reason, text) for reason, text in [(report.reason, report.message), *said] if reason), None)
    return found or (report.reason, report.message)


def hint(reason: str | None, message: str | None) -> str | None:
    """Return what would help, from the one taxonomy; None where the message says so already."""
    if reason is None or reason not in set(Reason):
        return None
    found = HINTS[Reason(reason)]
    return None if message is not None and found in message else found


def images(pod: Json | None, names: Iterable[str]) -> tuple[str, ...]:
    """Return the images of a pod's containers, of these names or of all."""
    status, chosen = (pod or {}).get("status") or {}, set(names)
    there = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return tuple(sorted({str(one.get("image")) for one in there if not chosen or one["name"] in chosen}))


def why(pod: Json, bodies: Iterable[Json], placed: Iterable[Placed]) -> list[tuple[Json, PodView]]:
    """Return for each LivePatch of the pod's namespace how it stands in this pod, and if it means it at all."""
    here = {p.work.live_patch.uid: p for p in placed if p.work.pod.uid == pod["metadata"]["uid"]}
    found = []
    for body in sorted(bodies, key=lambda one: str(one["metadata"]["name"])):
        mine = here.get(body["metadata"]["uid"])
        if mine is not None:
            found.append((body, pod_view(mine, pod)))
            continue
        reason = excluded(body, pod)
        view = waiting_view(body, pod)
        if reason is not None:
            view = view.model_copy(update={"phase": NOT_SELECTED, "reason": NOT_SELECTED, "message": reason})
        found.append((body, view))
    return found


def excluded(body: Json, pod: Json) -> str | None:
    """Return why a LivePatch does not mean a pod, None when it does."""
    try:
        selector = LabelSelector.model_validate(body["spec"]["selector"])
    except ValidationError as error:
        return f"its selector is not understood: {error.errors(include_url=False)[0]['msg']}"
    reason = mismatch(selector, pod["metadata"].get("labels") or {})
    if reason is not None:
        return reason
    if "deletionTimestamp" in pod["metadata"]:
        return "the pod is being deleted; it is left alone"
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    if status.get("phase") != "Running":
        return f"the pod is {status.get('phase')}, not Running"
    sidecars = [one for one in spec.get("initContainers") or () if one.get("restartPolicy") == "Always"]
    there = {one["name"] for one in [*spec["containers"], *sidecars, *(spec.get("ephemeralContainers") or ())]}
    named = set(body["spec"].get("containers") or ())
    if named and not named & there:
        return f"it means the containers {', '.join(sorted(named))}; the pod has {', '.join(sorted(there))}"
    return None
