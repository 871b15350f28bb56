"""The commands that work on one process: check, apply, status, revert."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from podgraft_bundle import protocol
from podgraft_bundle.bundle import read_bundle, save_bundle
from podgraft_bundle.protocol import Event, Request
from podgraft_cli.engine import Engine
from podgraft_cli.signing import TrustedKeys
from podgraft_cli.signing import check as check_signatures

Pid = Annotated[int, typer.Option("--pid", min=1, help="The process to work on.")]
Json = Annotated[bool, typer.Option("--json", help="Print the events as JSON lines.")]
Points = Annotated[
    list[str] | None,
    typer.Option("--point", help="A function at whose entry every thread may migrate, whatever is on its stack."),
]
Deadline = Annotated[str, typer.Option("--deadline", help="How long to wait for threads, for instance 10s or 2m.")]
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("check")(check)
    app.command("apply")(apply)
    app.command("status")(status)
    app.command("revert")(revert)


def check(pid: Pid, bundle: Path, *, json: Json = False) -> None:
    """Say whether a bundle can be applied to a process, and where each function would be entered. Touches nothing."""
    _run(Request(op="check", pid=pid, bundle=str(bundle)), json=json)


def apply(
    pid: Pid,
    bundle: Path,
    deadline: Deadline = "10s",
    *,
    point: Points = None,
    trusted_key: TrustedKeys = None,
    json: Json = False,
) -> None:
    """Put the new functions of a bundle into a running process, thread by thread.

    With --trusted-key nothing is touched unless one of the keys signed the bundle.
    """
    limit = seconds(deadline)
    with _verified(bundle, trusted_key) as file:
        request = Request(op="apply", pid=pid, bundle=str(file), deadline=limit, points=point or [])
        _run(request, json=json, live=True)


def status(pid: Pid, *, json: Json = False) -> None:
    """Show what is in a process, read from the process."""
    _run(Request(op="status", pid=pid), json=json)


def revert(
    pid: Pid,
    name: str,
    deadline: Deadline = "10s",
    *,
    skip_hooks: Annotated[
        bool, typer.Option("--skip-hooks", help="Call no hook of the patch; what they would take back stays.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring a process back to its old code."""
    request = Request(op="revert", pid=pid, name=name, deadline=seconds(deadline), skip_hooks=skip_hooks)
    _run(request, json=json, live=True)


def seconds(text: str) -> float:
    """Read a duration such as 10s, 500ms or 2m; a bare number means seconds."""
    for unit in ("ms", "s", "m", "h", ""):
        number = text.removesuffix(unit)
        if text.endswith(unit) and number.replace(".", "", 1).isdigit():
            value = float(number) * _UNITS.get(unit, 1.0)
            if value > 0:
                return value
    raise typer.BadParameter(f"{text!r} is no duration: write for instance 10s, 500ms or 2m")


@contextlib.contextmanager
def _verified(bundle: Path, trusted: list[Path] | None) -> Iterator[Path]:
    """Yield a file with what was verified: the one that was named may be another by the time the engine opens it."""
    if not trusted:
        yield bundle
        return
    content = read_bundle(bundle)
    check_signatures(content, trusted)
    with tempfile.TemporaryDirectory(prefix="podgraft-") as folder:
        copy = Path(folder) / "verified.graft"
        save_bundle(content, copy)
        yield copy


def _run(request: Request, *, json: bool, live: bool = False) -> None:
    """Run the engine, show its events, and end with its exit code."""
    with Engine() as engine:
        events = engine.ask(request)
        if json or (live and not out.is_terminal):
            for event in events:
                out.out(event.model_dump_json())
                if not json:
                    _explain(event)
        elif live:
            _live(events)
        else:
            for event in events:
                _show(event)
    raise typer.Exit(engine.exit_code)


def _live(events: Iterator[Event]) -> None:
    """Show a bar that moves with the threads."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as bar:
        task = bar.add_task("threads", total=None)
        for event in events:
            if isinstance(event, protocol.Migrated):
                bar.update(task, completed=event.migrated, total=event.total)
            else:
                _show(event)


def _show(event: Event) -> None:
    """Print one event for a human."""
    match event:
        case protocol.Inspected():
            _show_report(event)
        case protocol.Prepared(carrier=None):
            out.print(f"prepared generation {event.generation} at {event.area:#x}, with the helper that was there")
        case protocol.Prepared():
            held = f"held {event.carrier_held_us:.0f} us" if event.carrier_held_us is not None else ""
            out.print(f"prepared generation {event.generation} at {event.area:#x}; thread {event.carrier} was {held}")
        case protocol.HookRan():
            said = event.why or f"returned {event.result}"
            out.print(f"hook {event.kind} {event.function}: {said} [{event.seconds:.3f} s]", markup=False)
        case protocol.Switched():
            out.print(f"switched {event.pages} pages with {event.sites} sites; every thread still takes old code")
        case protocol.Waiting():
            place = f" in {event.function}" if event.function else ""
            call = f", {event.syscall}" if event.syscall else ""
            who = f"{event.tid} ({event.name})" if event.tid else event.name
            out.print(f"waiting for {who}{place}{call}: {event.why} [{event.waited_s:.1f} s]")
        case protocol.Finalized() | protocol.Reverted():
            ways = ", ".join(f"{count} {how}" for how, count in event.how.items()) or "nothing to do"
            out.print(
                f"[bold]{event.event}[/] {event.name}: {event.threads} threads ({ways}) in {event.seconds:.2f} s, "
                f"longest hold of one thread {event.max_held_us:.0f} us"
            )
        case protocol.Status():
            _show_status(event)
        case _:
            _explain(event)


def _show_report(event: protocol.Inspected) -> None:
    out.print(f"process {event.pid} ({event.comm}), {event.threads} threads, {event.module} at {event.base:#x}")
    table = Table("function", "site", "rung", "bytes")
    for site in event.sites:
        table.add_row(site.function, f"{site.address:#x}", site.rung, str(site.length))
    if event.sites:
        out.print(table)
    for problem in event.problems:
        err.print(f"[bold red]{problem.reason}[/]: {problem.detail}\n  {problem.hint}")
    if not event.problems:
        out.print("patchable")


def _show_status(event: protocol.Status) -> None:
    if not event.patches:
        out.print(f"process {event.pid} runs its own code (generation {event.generation})")
        return
    table = Table("patch", "version", "CVE", "phase", "generation", "functions")
    for patch in event.patches:
        cves, functions = ", ".join(patch.cves), ", ".join(patch.functions)
        table.add_row(patch.name, patch.version, cves, patch.phase, str(patch.generation), functions)
    out.print(table)


def _explain(event: Event) -> None:
    """Say on standard error why something was refused or failed, and what would help."""
    if isinstance(event, protocol.Refused | protocol.Failed):
        err.print(f"[bold red]{event.event}: {event.reason}[/]: {event.detail}\n  {event.hint}")
