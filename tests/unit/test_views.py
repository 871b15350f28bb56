"""What the plugin tells, from resources as the API server returns them; and that it fits on a screen of text."""

import io
from typing import Any

from rich.console import Console, RenderableType

from podgraft_cli.cluster import placed_of
from podgraft_cli.coverage import coverage, names_cve
from podgraft_cli.render import MAX_PODS, coverage_report, patch_tree, why_report
from podgraft_cli.views import PatchView, excluded, patch_view, pod_view, waiting_view, why

Json = dict[str, Any]
CVE = "CVE-2025-1"


def text(shown: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=160, highlight=False, no_color=True).print(shown)
    return out.getvalue()


def live_patch(name: str = "fix", **spec: Any) -> Json:
    condition = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "observedGeneration": 3}
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "generation": 3},
        "spec": {"bundle": {"inline": "AAAA"}, "selector": {"matchLabels": {"app": "redis"}}} | spec,
        "status": {
            "observedGeneration": 3,
            "bundle": {"digest": "sha256:" + "0" * 64, "name": "redis-fix", "version": "1", "cves": [CVE]},
            "pods": {"matched": 2, "patched": 1, "pending": 1},
            "conditions": [condition | {"type": "Reconciling", "reason": "Progressing", "message": "1 of 2"}],
        },
    }


def pod(name: str, image: str = "redis:7", **labels: str) -> Json:
    statuses = [{"name": "redis", "image": image}, {"name": "load", "image": "load:1"}]
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": "redis"} | labels},
        "spec": {"nodeName": "n1", "containers": [{"name": "redis"}, {"name": "load"}]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    }


def node_patch(name: str, phase: str, patch: str = "fix", **process: Any) -> Json:
    """Return a NodePatch with one item and its answer, and a field that only a later operator knows."""
    ref = {"namespace": "shop", "uid": f"uid-{patch}", "name": patch}
    item = {
        "id": f"{patch}/{name}", "version": 4, "desired": "Applied", "livePatch": ref, "baseline": {"ready": True},
        "pod": {"namespace": "shop", "name": name, "uid": f"uid-{name}"},
        "containers": [{"name": "redis", "id": "0" * 64}],
    }  # fmt: skip
    one = {"container": "redis", "pid": 7, "startTime": 1, "phase": phase, "threadsTotal": 3} | process
    report = {"id": item["id"], "version": 4, "phase": phase, "threadsTotal": 3, "processes": [one]}
    return {"metadata": {"name": "n1"}, "spec": {"items": [item]}, "status": {"items": [report]}}


def view(body: Json, pods: list[Json], *nodes: Json) -> PatchView:
    return patch_view(body, pods, [one for node in nodes for one in placed_of(node)])


def test_an_answer_to_older_work_is_none() -> None:
    """A report of another version of the item is not shown as the state of the pod."""
    node = node_patch("redis-0", "Applied")
    node["status"]["items"][0]["version"] = 3
    found = view(live_patch(), [pod("redis-0")], node)
    assert found.pods is not None
    assert found.pods[0].phase == "Asked"


def test_selected_pods_without_work_wait() -> None:
    """They are shown with the reason for waiting; pods of other LivePatches are not."""
    others = node_patch("b", "Applied", "another")
    found = view(live_patch(paused=True), [pod("a"), pod("b")], node_patch("a", "Applied"), others)
    assert found.pods is not None
    assert [(one.pod, one.phase, one.reason) for one in found.pods] == [
        ("a", "Applied", None),
        ("b", "Waiting", "Paused"),
    ]


def test_a_fleet_fits_on_a_screen() -> None:
    """The tree shows troubled pods first, and counts those beyond its limit."""
    names = [f"redis-{number:03}" for number in range(MAX_PODS + 40)]
    nodes = [node_patch(one, "Refused" if one == names[-1] else "Applied", reason="NoPatchSite") for one in names]
    shown = text(patch_tree(view(live_patch(), [pod(one) for one in names], *nodes)))
    assert "and 40 Applied" in shown
    assert names[-1] in shown
    assert shown.count("\n") < 3 * MAX_PODS + 10


def test_markup_in_names_is_text() -> None:
    """What programs and messages are called cannot colour the screen, nor break it."""
    thread = {"tid": 7, "name": "[red]x[/]\x1b[2J", "why": "in [/foo]", "waitedSeconds": 1}
    node = node_patch("redis-0", "Applying", stragglers=[thread], reason="Busy", message="[bold]no[/]")
    shown = text(patch_tree(view(live_patch(), [pod("redis-0")], node)))
    assert "[red]x[/]\N{REPLACEMENT CHARACTER}[2J" in shown
    assert "\x1b" not in shown
    assert "in [/foo]" in shown
    assert "[bold]no[/]" in shown


def test_why_names_what_would_help() -> None:
    """The hint of the taxonomy is shown once, not again where the message holds it already."""
    (placed,) = placed_of(node_patch("redis-0", "Refused", reason="AlreadyTraced", message="traced by 12 (gdb)"))
    found = pod_view(placed, pod("redis-0"))
    assert found.hint == "end the debugger or tracer of this process, then try again"
    assert "what would help: end the debugger" in text(why_report("shop/redis-0", [found], ["fix"]))
    said = f"traced by 12 (gdb); {found.hint}"
    (placed,) = placed_of(node_patch("redis-0", "Refused", reason="AlreadyTraced", message=said))
    assert pod_view(placed, pod("redis-0")).hint is None


def test_why_a_live_patch_does_not_mean_a_pod() -> None:
    """By its label, its containers, its end, or its state."""
    assert excluded(live_patch(), pod("a")) is None
    assert excluded(live_patch(), pod("a", app="x")) == "label app is x, not redis"
    named = live_patch(containers=["nginx"])
    assert excluded(named, pod("a")) == "it means the containers nginx; the pod has load, redis"
    expression = {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]}
    assert excluded(live_patch(selector=expression), pod("a")) == "label tier is absent, asked for is tier in (a,b)"
    leaving = pod("a")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert "being deleted" in str(excluded(live_patch(), leaving))
    starting = pod("a")
    starting["status"]["phase"] = "Pending"
    assert "Pending" in str(excluded(live_patch(), starting))
    found = why(pod("redis-0"), [live_patch(), live_patch("other", containers=["nginx"])], [])
    assert [one.phase for _, one in found] == ["Waiting", "NotSelected"]


def test_everywhere_means_everywhere() -> None:
    """Not while one pod waits, runs outside, is left out by repatch, is being reverted, or cannot be looked at."""
    pods = [pod("a"), pod("b")]
    both = view(live_patch(), pods, node_patch("a", "Applied"), node_patch("b", "Applied"))
    assert coverage(CVE, [both], pods, []).everywhere
    other_build = view(live_patch(), pods, node_patch("a", "Applied"), node_patch("b", "NotApplicable"))
    assert coverage(CVE, [other_build], pods, []).everywhere
    for name, views, cluster, unread in (
        ("one waits", [view(live_patch(repatch=False), pods, node_patch("a", "Applied"))], pods, []),
        ("outside", [both], [*pods, pod("c", app="x")], []),
        ("no right to list pods", [both], None, []),
        ("another bundle is not read", [both], pods, ["shop/other"]),
        ("being deleted", [both.model_copy(update={"leaving": True})], pods, []),
        ("changed meanwhile", [both.model_copy(update={"up_to_date": False})], pods, []),
        ("no right to read nodes", [both.model_copy(update={"pods": None})], pods, []),
        ("no LivePatch at all", [], pods, []),
    ):
        found = coverage(CVE, views, cluster, unread)
        assert not found.everywhere, name
        assert found.answer in text(coverage_report(found))
    twice = coverage(CVE, [both, both.model_copy(update={"name": "again"})], pods, [])
    assert "in all 2 pods" in twice.answer, "a pod of two LivePatches is one pod"
    assert [one.image for one in twice.images] == ["redis:7"], "the image of the patched process, not of its neighbours"
    assert names_cve(live_patch(), CVE.lower())
    assert not names_cve({"metadata": {}, "spec": {}}, CVE)


def test_waiting_in_words() -> None:
    """A pod that waits says for what."""
    assert waiting_view(live_patch(), pod("a")).reason == "NotItsTurn"
    assert waiting_view(live_patch(repatch=False), pod("a")).reason == "Repatch"
    assert "kubectl podgraft resume fix" in str(waiting_view(live_patch(paused=True), pod("a")).message)
