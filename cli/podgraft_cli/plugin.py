"""`kubectl podgraft`: what runs where, why not, pause, resume, revert; and whether a CVE is fixed everywhere."""

import asyncio
import contextlib
import json as jsonlib
import logging
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated

import structlog
import typer
from kubernetes.aio.config import ConfigException
from pydantic import ValidationError
from rich.console import Console, RenderableType
from rich.live import Live

from podgraft_api.progress import RESUME, REVERT
from podgraft_bundle.errors import ExitCode
from podgraft_cli import render
from podgraft_cli.cluster import Access
from podgraft_cli.command import Session, command, out, print_json
from podgraft_cli.coverage import coverage, names_cve
from podgraft_cli.follow import Picture, until_gone, until_reverted
from podgraft_cli.process import seconds
from podgraft_cli.views import NOT_SELECTED, PatchView, patch_view
from podgraft_cli.views import why as reasons
from podgraft_kube.client import UNAVAILABLE, ApiError, Json

app = typer.Typer(
    help="Live patches of running pods: what is patched, what is not, and why.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True, highlight=False)

Name = Annotated[str, typer.Argument(help="The LivePatch.")]


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


@command(app)
async def status(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="The LivePatch; default: all of the namespace.")] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until it is done or stalled.")] = False,
    limit: Annotated[str, typer.Option("--timeout", help="With --watch: how long at most.")] = "1h",
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")] = False,
) -> ExitCode:
    """Show LivePatches with their pods, processes and the threads that are waited for.

    With --watch: exit 0 when every pod is as wanted or the LivePatch is gone, 1 when it is stalled, 4 when time is up.
    """
    if watch and (name is None or everywhere):
        raise typer.BadParameter("--watch follows one LivePatch: name it")
    if watch and name is not None:
        return await _follow(session, name, seconds(limit))
    access = session.access
    bodies = [await access.live_patch(name)] if name else await access.live_patches(everywhere=everywhere)
    views = await _views(access, bodies)
    if session.json:
        print_json(views)
        return ExitCode.DONE
    for view in views:
        out.print(render.patch_tree(view))
    if not views:
        out.print("no LivePatches")
    return ExitCode.DONE


@command(app)
async def why(session: Session, pod: Annotated[str, typer.Argument(help="The pod.")]) -> ExitCode:
    """Say of a pod which LivePatches mean it, how each stands in it, what is in the way and what would help."""
    access = session.access
    body = await access.kube.get(f"/api/v1/namespaces/{access.namespace}/pods/{pod}")
    placed = await access.placed()
    found = reasons(body, await access.live_patches(), placed or [])
    # What does not mean the pod is of interest only where nothing else does.
    shown = [one for one in found if one[1].phase != NOT_SELECTED] or found
    if session.json:
        print_json([view.wire() | {"livePatch": patch["metadata"]["name"]} for patch, view in found])
    else:
        names = [patch["metadata"]["name"] for patch, _ in shown]
        out.print(render.why_report(session.where(pod), [view for _, view in shown], names))
    if placed is None:
        err.print("no right to read NodePatches (ClusterRole podgraft-inspect): what agents say is not known")
        return ExitCode.FAILED
    return ExitCode.DONE


@command(app)
async def pause(session: Session, name: Name) -> ExitCode:
    """Begin no further pod; what is under way is finished."""
    await session.access.kube.patch(session.access.live_patch_path(name), {"spec": {"paused": True}})
    session.say(name, "paused")
    return ExitCode.DONE


@command(app)
async def resume(session: Session, name: Name) -> ExitCode:
    """Go on after `pause`, after a pause that is a step of the rollout, after a failure, and after `revert`."""
    await session.access.kube.patch(session.access.live_patch_path(name), resumption(datetime.now(UTC)))
    session.say(name, "resumed")
    return ExitCode.DONE


def resumption(now: datetime) -> Json:
    """Return the merge patch that makes a LivePatch go on, whatever it waits for."""
    return {"spec": {"paused": False}, "metadata": {"annotations": {RESUME: stamp(now)}}}


def stamp(now: datetime) -> str:
    """Return a value for an annotation that asks for something: a new one each time."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@command(app)
async def revert(
    session: Session,
    name: Name,
    *,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the LivePatch as well.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every pod is back.")] = True,
    limit: Annotated[str, typer.Option("--timeout", help="How long at most.")] = "10m",
) -> ExitCode:
    """Take the bundle back from every pod. Pods are vulnerable again afterwards; `resume` patches them again.

    Pods go back to the bundle of the rollout before, or to their old code where there is none; with --delete always to
    their old code.
    """
    body = await session.access.live_patch(name)
    what = f"Revert LivePatch {session.where(name)} in {_patched(body)} pods"
    _ask(f"{what}, and delete it?" if delete else f"{what}?", yes=yes)
    done = await _delete(session, name, body) if delete else await _withdraw(session, name, body)
    if not wait:
        session.say(name, "is being reverted")
        return ExitCode.DONE
    if not await done(seconds(limit)):
        session.say(name, "is still being reverted: kubectl podgraft status shows what is left")
        return ExitCode.DEADLINE
    session.say(name, "is reverted and gone" if delete else "is reverted: resume patches again")
    return ExitCode.DONE


Finished = Callable[[float], Awaitable[bool]]


async def _withdraw(session: Session, name: str, body: Json) -> Finished:
    """Ask for a revert that leaves the LivePatch in its place; return what waits for it."""
    if not (body.get("status") or {}).get("rollout"):
        # The operator takes a request that is older than the rollout for one that was meant for somebody else.
        raise typer.BadParameter(f"{session.where(name)} has not been rolled out: there is nothing to revert")
    asked = stamp(datetime.now(UTC))
    # The uid: a namesake was not asked about.
    meta = {"uid": body["metadata"]["uid"], "annotations": {REVERT: asked}}
    await session.access.kube.patch(session.access.live_patch_path(name), {"metadata": meta})
    return lambda limit: until_reverted(session.access, name, asked, limit)


async def _delete(session: Session, name: str, body: Json) -> Finished:
    """Delete a LivePatch so that its pods are reverted; return what waits for it."""
    path, uid = session.access.live_patch_path(name), body["metadata"]["uid"]
    if body["spec"].get("deletionPolicy") == "Keep":
        # The deletion would leave the new code where it is.
        await session.access.kube.patch(path, {"metadata": {"uid": uid}, "spec": {"deletionPolicy": "Revert"}})
    await session.access.kube.delete(path, {"preconditions": {"uid": uid}})
    return lambda limit: until_gone(session.access, name, limit)


@command(app, namespaced=False)
async def cve(
    session: Session, name: Annotated[str, typer.Argument(metavar="CVE", help="For instance CVE-2025-32023.")]
) -> ExitCode:
    """Say whether a CVE is live-fixed everywhere: all namespaces, pods and images. Exit 0: yes; 1: no, or not known."""
    bodies = await session.access.live_patches(everywhere=True)
    unread = [
        f"{one['metadata']['namespace']}/{one['metadata']['name']}"
        for one in bodies
        if not (one.get("status") or {}).get("bundle")
    ]
    views = await _views(session.access, [one for one in bodies if names_cve(one, name)])
    found = coverage(name, views, await session.access.pods(None), unread)
    if session.json:
        print_json(found)
    else:
        out.print(render.coverage_report(found))
    return ExitCode.DONE if found.everywhere else ExitCode.FAILED


async def _views(access: Access, bodies: list[Json]) -> list[PatchView]:
    placed = await access.placed() if bodies else None
    return [
        patch_view(body, await access.pods(body["metadata"]["namespace"], body["spec"]["selector"]), placed)
        for body in bodies
    ]


async def _follow(session: Session, name: str, limit: float) -> ExitCode:
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not session.json else None
    last = None
    with contextlib.suppress(TimeoutError), live or contextlib.nullcontext():
        async with asyncio.timeout(limit), contextlib.aclosing(Picture(session.access, name).views()) as views:
            async for view in views:
                if view is None:
                    session.say(name, "is gone")
                    return ExitCode.DONE
                if view != last:
                    _show(view, live, json=session.json)
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


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("this needs an answer: give --yes")
    typer.confirm(question, abort=True)


def _patched(body: Json) -> int:
    return int(((body.get("status") or {}).get("pods") or {}).get("patched", 0))


def _fail(message: str) -> None:
    if "--json" in sys.argv:
        out.out(jsonlib.dumps({"error": message}))
    else:
        err.print(f"kubectl podgraft: {message}", markup=False)
    sys.exit(ExitCode.FAILED)
