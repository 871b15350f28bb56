"""Is a CVE live-fixed everywhere? LivePatches, pods and images of one CVE, and who runs the image without the fix."""

from collections import Counter
from collections.abc import Iterable, Sequence

from podgraft_api.model import Report
from podgraft_cli.views import Json, PatchView, PodView, images

FIXED = "Applied"
DOES_NOT_APPLY = "NotApplicable"


class ImageView(Report):
    """Pods of one image. outside: run the image of a fixed pod and belong to no LivePatch of this CVE."""

    image: str
    pods: int
    fixed: int = 0
    open: int = 0
    not_applicable: int = 0
    outside: int = 0


class Coverage(Report):
    """The answer. unknown: what could not be looked at, each a sentence; then nothing is called fixed everywhere."""

    cve: str
    everywhere: bool
    answer: str
    live_patches: tuple[PatchView, ...] = ()
    images: tuple[ImageView, ...] = ()
    outside: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def names_cve(body: Json, cve: str) -> bool:
    """Return whether a LivePatch's bundle names a CVE, in any case of letters."""
    bundle = (body.get("status") or {}).get("bundle") or {}
    return cve.casefold() in {str(one).casefold() for one in bundle.get("cves") or ()}


def coverage(cve: str, views: Sequence[PatchView], pods: Sequence[Json] | None, unread: Sequence[str]) -> Coverage:
    """Judge one CVE.

    Args:
        cve: the id that was asked for.
        views: the LivePatches whose bundles name it.
        pods: all pods of the cluster, None without the right to read them.
        unread: LivePatches whose bundle the operator has not read, so that they may name it too.
    """
    unknown = [f"{one}: its bundle is not read yet, so its CVEs are not known" for one in unread]
    if pods is None:
        unknown.append("no right to list all pods: pods of the same images outside of the LivePatches are not known")
    if any(view.pods is None for view in views):
        unknown.append("no right to read NodePatches: images are not known")
    found, outside = _images(views, pods or ())
    patched, left = _counted(views)
    moving = [f"{one.namespace}/{one.name}" for one in views if one.leaving or not one.up_to_date]
    unknown += [f"{one}: it is being deleted, or its last change is not seen yet" for one in moving]
    everywhere = bool(views) and not (left or outside or unknown)
    return Coverage(
        cve=cve,
        everywhere=everywhere,
        answer=_answer(cve, views, patched, left, outside, everywhere=everywhere),
        live_patches=tuple(views),
        images=found,
        outside=tuple(outside),
        unknown=tuple(unknown),
    )


def _counted(views: Iterable[PatchView]) -> tuple[int, int]:
    """Return how many pods are fixed, and how many are not though they run the build or may run it."""
    fixed: set[tuple[str, str]] = set()
    open_: set[tuple[str, str]] = set()
    patched = left = 0
    for view in views:
        if view.pods is None:
            patched += view.counts.patched
            left += view.counts.pending + view.counts.failed
        # Not the counts of the status: pods that started later and are left alone (repatch: false) are not in them.
        for pod in view.pods or ():
            if pod.phase != DOES_NOT_APPLY:
                (fixed if _fixed(pod) else open_).add((view.namespace, pod.pod))
    return patched + len(fixed - open_), left + len(open_)


def _fixed(pod: PodView) -> bool:
    return pod.phase == FIXED and pod.desired == "Applied"


def _answer(
    cve: str, views: Sequence[PatchView], patched: int, left: int, outside: Sequence[str], *, everywhere: bool
) -> str:
    if not views:
        return f"no LivePatch names {cve}"
    if everywhere and not patched:
        return f"no running pod that the LivePatches for {cve} select runs the affected build"
    if everywhere:
        return f"{cve} is live-fixed in all {patched} pods that run the affected build"
    more = f", {len(outside)} more run the same image in no LivePatch" if outside else ""
    return f"{cve} is NOT known to be fixed everywhere: {patched} pods patched, {left} not{more}"


def _images(views: Iterable[PatchView], pods: Iterable[Json]) -> tuple[tuple[ImageView, ...], list[str]]:
    total: Counter[str] = Counter()
    fixed: Counter[str] = Counter()
    open_: Counter[str] = Counter()
    inapplicable: Counter[str] = Counter()
    meant = set()
    for view in views:
        for pod in view.pods or ():
            meant.add((view.namespace, pod.pod))
            total.update(pod.images)
            counter = fixed if _fixed(pod) else inapplicable if pod.phase == DOES_NOT_APPLY else open_
            counter.update(pod.images)
    affected = {image for image in total if fixed[image] or open_[image]}
    outside: Counter[str] = Counter()
    names = []
    for body in pods:
        where = (body["metadata"]["namespace"], body["metadata"]["name"])
        mine = affected & set(images(body, ()))
        if where not in meant and mine and (body.get("status") or {}).get("phase") == "Running":
            outside.update(mine)
            names.append("/".join(where))
    rows = tuple(
        ImageView(
            image=one, pods=total[one] + outside[one], fixed=fixed[one], open=open_[one],
            not_applicable=inapplicable[one], outside=outside[one],
        )
        for one in sorted(total)
    )  # fmt: skip
    return rows, sorted(names)
