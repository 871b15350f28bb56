"""`kubectl podgraft`: what runs where, why not, pause, resume, revert; and whether a CVE is fixed everywhere."""

import asyncio
import contextlib
import json as jsonlib
import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import structlog
import typer
from kubernetes.aio.config import ConfigException
from pydantic import TypeAdapter, ValidationError
from rich.console import Console, RenderableType
from rich.live import Live

from podgraft_bundle.errors import ExitCode
from podgraft_cli import render
from podgraft_cli.cluster import Access
from podgraft_cli.coverage import coverage, names_cve
from podgraft_cli.follow import Picture, until_gone
from podgraft_cli.process import seconds
from podgraft_cli.views import NOT_SELECTED, PatchView, patch_view, why
from podgraft_kube.client import UNAVAILABLE, ApiError, Json

# A change of the value asks the operator to go on after a pause without end.
RESUME = "podgraft.dev/resumeRequestedAt"

app = typer.Typer(
    help="Live patches of running pods: what is patched, what is not, and why.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# What goes into a pipe or a file is for grep: no line is broken there.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
err = Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(help="The LivePatch.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Default: KUBECONFIG, ~/.kube/config.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def main() -> None:
    """Run the plugin; exit 0 done, 1 not so, 2 wrong usage, 4 time over."""
    # Only warnings of the watch are of interest here, and not between the lines of a picture.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        app()
    except ApiError as error:
        _fail(error.message or str(error))
    except ValidationError as error:
        _fail(f"the cluster holds what this version does not understand: {error.errors(include_url=False)[0]['msg']}")
    except (ConfigException, OSError, *UNAVAILABLE) as error:
        _fail(f"{type(error).__name__}: {error}" if not str(error) else str(error))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="The LivePatch; default: all of the namespace.")] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until it is done or stalled.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", help="With --watch: how long at most.")] = "1h",
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Show LivePatches with their pods, processes and the threads that are waited for.

    With --watch: exit 0 when every pod is as wanted or the LivePatch is gone, 1 when it is stalled, 4 when time is up.
    """
    if watch and (name is None or everywhere):
        raise typer.BadParameter("--watch follows one LivePatch: name it")

    async def run(access: Access) -> ExitCode:
        if watch and name is not None:
            return await _follow(access, name, seconds(timeout), json=json)
        bodies = [await access.live_patch(name)] if name else await access.live_patches(everywhere=everywhere)
        views = await _views(access, bodies)
        if json:
            _print_json(views)
            return ExitCode.DONE
        for view in views:
            out.print(render.patch_tree(view))
        if not views:
            out.print("no LivePatches")
        return ExitCode.DONE

    _run(run, namespace, context, kubeconfig)


@app.command(name="why")
def why_command(
    pod: Annotated[str, typer.Argument(help="The pod.")],
    *,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Say of a pod which LivePatches mean it, how each stands in it, what is in the way and what would help."""

    async def run(access: Access) -> ExitCode:
        body = await access.kube.get(f"/api/v1/namespaces/{access.namespace}/pods/{pod}")
        placed = await access.placed()
        found = why(body, await access.live_patches(), placed or [])
        # What does not mean the pod is of interest only where nothing else does.
        shown = [one for one in found if one[1].phase != NOT_SELECTED] or found
        if json:
            _print_json([view.wire() | {"livePatch": patch["metadata"]["name"]} for patch, view in found])
        else:
            names = [patch["metadata"]["name"] for patch, _ in shown]
            out.print(render.why_report(f"{access.namespace}/{pod}", [view for _, view in shown], names))
        if placed is None:
            err.print("no right to read NodePatches (ClusterRole podgraft-inspect): what agents say is not known")
            return ExitCode.FAILED
        return ExitCode.DONE

    _run(run, namespace, context, kubeconfig)


@app.command()
def pause(
    name: Name,
    *,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Begin no further pod; what is under way is finished."""

    async def run(access: Access) -> ExitCode:
        return await _change(access, name, {"spec": {"paused": True}}, "paused", json=json)

    _run(run, namespace, context, kubeconfig)


@app.command()
def resume(
    name: Name,
    *,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Go on after `pause`, and after a pause that is a step of the rollout."""

    async def run(access: Access) -> ExitCode:
        return await _change(access, name, resumption(datetime.now(UTC)), "resumed", json=json)

    _run(run, namespace, context, kubeconfig)


def resumption(now: datetime) -> Json:
    """Return the merge patch that makes a LivePatch go on, whatever it waits for."""
    return {"spec": {"paused": False}, "metadata": {"annotations": {RESUME: now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}}


@app.command()
def revert(
    name: Name,
    *,
    yes: Yes = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every pod is back.")] = True,
    timeout: Annotated[str, typer.Option("--timeout", help="How long at most.")] = "10m",
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Bring every pod back to its old code, and delete the LivePatch. Pods are vulnerable again afterwards."""

    async def run(access: Access) -> ExitCode:
        body = await access.live_patch(name)
        where = f"{access.namespace}/{name}"
        _ask(f"Revert LivePatch {where} in {_patched(body)} pods, and delete it?", yes=yes)
        path, uid = access.live_patch_path(name), body["metadata"]["uid"]
        if body["spec"].get("deletionPolicy") == "Keep":
            # The deletion would leave the new code where it is. The uid: a namesake was not asked about.
            await access.kube.patch(path, {"metadata": {"uid": uid}, "spec": {"deletionPolicy": "Revert"}})
        await access.kube.delete(path, {"preconditions": {"uid": uid}})
        if wait and not await until_gone(access, name, seconds(timeout)):
            _say(where, "is still being reverted: kubectl podgraft status shows what is left", json=json)
            return ExitCode.DEADLINE
        _say(where, "is reverted and gone" if wait else "is being reverted", json=json)
        return ExitCode.DONE

    _run(run, namespace, context, kubeconfig)


@app.command()
def cve(
    name: Annotated[str, typer.Argument(metavar="CVE", help="For instance CVE-2025-32023.")],
    *,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    json: AsJson = False,
) -> None:
    """Say whether a CVE is live-fixed everywhere: all namespaces, pods and images. Exit 0: yes; 1: no, or not known."""

    async def run(access: Access) -> ExitCode:
        bodies = await access.live_patches(everywhere=True)
        unread = [
            f"{one['metadata']['namespace']}/{one['metadata']['name']}"
            for one in bodies
            if not (one.get("status") or {}).get("bundle")
        ]
        views = await _views(access, [one for one in bodies if names_cve(one, name)])
        found = coverage(name, views, await access.pods(None), unread)
        if json:
            _print_json(found)
        else:
            out.print(render.coverage_report(found))
        return ExitCode.DONE if found.everywhere else ExitCode.FAILED

    _run(run, None, context, kubeconfig)


def _run(
    work: Callable[[Access], Awaitable[ExitCode]], namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:
    async def connected() -> ExitCode:
        access = await Access.open(namespace=namespace, context=context, kubeconfig=kubeconfig)
        async with access.kube:
            return await work(access)

    raise typer.Exit(asyncio.run(connected()))


async def _views(access: Access, bodies: list[Json]) -> list[PatchView]:
    placed = await access.placed() if bodies else None
    return [
        patch_view(body, await access.pods(body["metadata"]["namespace"], body["spec"]["selector"]), placed)
        for body in bodies
    ]


async def _follow(access: Access, name: str, limit: float, *, json: bool) -> ExitCode:
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not json else None
    last = None
    with contextlib.suppress(TimeoutError), live or contextlib.nullcontext():
        async with asyncio.timeout(limit), contextlib.aclosing(Picture(access, name).views()) as views:
            async for view in views:
                if view is None:
                    _say(f"{access.namespace}/{name}", "is gone", json=json)
                    return ExitCode.DONE
                if view != last:
                    _show(view, live, json=json)
                last = view
                if view.done:
                    return ExitCode.DONE
                if view.up_to_date and view.state == "Stalled":
                    return ExitCode.FAILED
    return ExitCode.DEADLINE


def _show(view: PatchView, live: Live | None, *, json: bool) -> None:
    tree: RenderableType = render.patch_tree(view)
    if json:
        out.out(jsonlib.dumps(view.wire()))
    elif live is not None:
        live.update(tree, refresh=True)
    else:
        out.print(tree)


async def _change(access: Access, name: str, change: Json, word: str, *, json: bool) -> ExitCode:
    await access.kube.patch(access.live_patch_path(name), change)
    _say(f"{access.namespace}/{name}", word, json=json)
    return ExitCode.DONE


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("this needs an answer: give --yes")
    typer.confirm(question, abort=True)


def _patched(body: Json) -> int:
    return int(((body.get("status") or {}).get("pods") or {}).get("patched", 0))


def _say(what: str, word: str, *, json: bool) -> None:
    if json:
        out.out(jsonlib.dumps({"livePatch": what, "result": word}))
    else:
        out.print(f"livepatch {what} {word}")


def _print_json(found: Any) -> None:
    """Print models as the API server writes them, one line."""
    plain = TypeAdapter(Any).dump_python(found, mode="json", by_alias=True, exclude_none=True)
    out.out(jsonlib.dumps(plain))


def _fail(message: str) -> None:
    if "--json" in sys.argv:
        out.out(jsonlib.dumps({"error": message}))
    else:
        err.print(f"kubectl podgraft: {message}", markup=False)
    sys.exit(ExitCode.FAILED)
