"""The plugin's views for people: trees, tables and sentences (rich)."""

from collections import Counter
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.markup import escape as escape_markup
from rich.table import Table
from rich.tree import Tree

from podgraft_api.nodepatch import ProcessReport
from podgraft_cli.coverage import Coverage
from podgraft_cli.views import ASKED, NOT_SELECTED, WAITS, PatchView, PodView

COLOURS = {
    "Ready": "green", "Applied": "green", "Reverted": "green", "NotApplicable": "dim", NOT_SELECTED: "dim",
    "Stalled": "red", "Refused": "red", "Failed": "red",
}  # fmt: skip
WORDS = {WAITS: "waits for its turn", ASKED: "asked, no answer yet"}
# A tree of a fleet would not fit on any screen; troubled pods are shown first.
MAX_PODS = 60
QUIET = ("Applied", "Reverted", "NotApplicable")


def escape(text: str) -> str:
    """Return text as it is: no markup, and nothing that drives a terminal; programs name their threads as they like."""
    return escape_markup("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text))


def patch_tree(view: PatchView) -> RenderableType:
    """Return patch, pods, processes, and the threads that are waited for."""
    head = f"[bold]{escape(view.namespace)}/{escape(view.name)}[/] {_state(view.state, view.reason)}"
    if view.bundle is not None:
        cves = f" ({', '.join(view.bundle.cves)})" if view.bundle.cves else ""
        head += escape(f"  {view.bundle.name} {view.bundle.version}{cves}")
    tree = Tree(head)
    counts, threads = view.counts, view.threads
    wanted = counts.matched - counts.not_applicable
    line = f"{counts.patched}/{wanted} pods patched, {threads.migrated}/{threads.total} threads"
    line += f", {counts.failed} failed" if counts.failed else ""
    line += f", {counts.not_applicable} not applicable" if counts.not_applicable else ""
    tree.add(escape(line + ("" if view.up_to_date else "; the operator has not seen the last change yet")))
    if view.message and view.state != "Ready":
        tree.add(escape(view.message))
    if view.pods is None:
        _from_status(tree, view)
        return tree
    pods = sorted(view.pods, key=lambda one: (one.phase in QUIET, one.pod))
    for pod in pods[:MAX_PODS]:
        _add_pod(tree, pod)
    if len(pods) > MAX_PODS:
        left = Counter(one.phase for one in pods[MAX_PODS:])
        tree.add(f"… and {', '.join(f'{count} {phase}' for phase, count in left.items())}")
    return tree


def _from_status(tree: Tree, view: PatchView) -> None:
    tree.add("[dim]no right to read NodePatches (ClusterRole podgraft-inspect): only what the LivePatch itself says[/]")
    for failure in view.status.failures or ():
        process = f" process {failure.pid}" if failure.pid is not None else ""
        tree.add(f"{escape(failure.pod)}{process} {_state('Failed', failure.reason)} {escape(failure.message)}")
    for one in view.status.stragglers or ():
        tree.add(escape(f"{one.pod} process {one.pid}: {one.who} {one.why}"))


def _add_pod(tree: Tree, pod: PodView) -> None:
    word = WORDS.get(pod.phase, pod.phase)
    branch = tree.add(
        f"{escape(pod.pod)} [dim]{escape(pod.node or '')}[/] {_state(pod.phase, word)}{escape(_threads(pod))}"
    )
    if pod.phase not in QUIET and pod.reason and not any(one.reason for one in pod.processes):
        branch.add(escape(f"{pod.reason}: {pod.message or ''}"))
    for process in pod.processes:
        _add_process(branch, process)


def _add_process(branch: Tree, process: ProcessReport) -> None:
    held = f", longest hold {process.max_held_microseconds:.0f} µs" if process.max_held_microseconds else ""
    leaf = branch.add(
        f"{escape(process.container)} [dim]pid {process.pid}[/] {_state(process.phase, process.phase)} "
        + escape(f"{process.threads_migrated}/{process.threads_total} threads{held}")
    )
    if process.reason:
        leaf.add(escape(f"{process.reason}: {process.message or ''}"))
    for one in process.stragglers or ():
        place = f" in {one.function}" if one.function else ""
        call = f", waits in {one.syscall}" if one.syscall else ""
        leaf.add(escape(f"{one.who}{place}{call}: {one.why} [{one.waited_seconds:.0f} s]"))


def why_report(pod: str, found: Iterable[PodView], names: Iterable[str]) -> RenderableType:
    """Return how each LivePatch stands in one pod, what is in the way, and what would help."""
    tree = Tree(f"[bold]{escape(pod)}[/]")
    for name, view in zip(names, found, strict=True):
        branch = tree.add(
            f"[bold]{escape(name)}[/] {_state(view.phase, WORDS.get(view.phase, view.phase))}{escape(_threads(view))}"
        )
        if view.reason and view.reason != view.phase:
            branch.add(f"reason: [bold]{escape(view.reason)}[/]")
        if view.message:
            branch.add(escape(view.message))
        if view.hint:
            branch.add(f"[cyan]what would help:[/] {escape(view.hint)}")
        for process in view.processes:
            _add_process(branch, process)
    if not tree.children:
        tree.add("no LivePatch in this namespace")
    return tree


def coverage_report(found: Coverage) -> RenderableType:
    """Return the answer for one CVE: a sentence, the LivePatches, the images."""
    patches = Table("LivePatch", "state", "patched", "pending", "failed", "not applicable", title=found.cve)
    for view in found.live_patches:
        counts = view.counts
        numbers = (counts.patched, counts.pending, counts.failed, counts.not_applicable)
        patches.add_row(f"{view.namespace}/{view.name}", _state(view.state, view.reason), *map(str, numbers))
    parts: list[RenderableType] = [patches]
    if found.images:
        table = Table("image", "pods", "fixed", "open", "not applicable", "in no LivePatch")
        for one in found.images:
            table.add_row(
                escape(one.image), *map(str, (one.pods, one.fixed, one.open, one.not_applicable, one.outside))
            )
        parts.append(table)
    parts.extend(f"[dim]{escape(one)}[/]" for one in found.unknown)
    colour = "green" if found.everywhere else "red"
    return Group(*parts, f"[bold {colour}]{escape(found.answer)}[/]")


def _threads(pod: PodView) -> str:
    if not pod.threads_total:
        return ""
    held = f", longest hold {pod.max_held_microseconds:.0f} µs" if pod.max_held_microseconds else ""
    return f" {pod.threads_migrated}/{pod.threads_total} threads{held}"


def _state(state: str, text: str) -> str:
    return f"[{COLOURS.get(state, 'yellow')}]{escape(text)}[/]"
