"""The commands of whoever makes a patch: build, diff, inspect."""

import json as json_module
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from pydantic import StringConstraints, TypeAdapter, ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from podgraft_builder.build import build
from podgraft_builder.explain import Explanation, explain
from podgraft_builder.hazards import check_hazards
from podgraft_builder.hooks import HEADER, kind_name
from podgraft_builder.options import Options
from podgraft_builder.pairs import compare_pairs, read_folders, unchanged_objects
from podgraft_builder.verdict import OVERRULABLE, Hazard, Verdict
from podgraft_bundle.bundle import Bundle, read_bundle
from podgraft_bundle.errors import ExitCode, Reason, Refusal
from podgraft_bundle.manifest import CveId, Manifest, Name, Symbol
from podgraft_cli.page import write_page
from podgraft_cli.rungs import NONE, Rungs, find_rungs, ready_engine

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Version = Annotated[str, StringConstraints(min_length=1, max_length=63)]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def _checked(kind: Any) -> Callable[[Any], Any]:
    """Return a callback that holds a value against the manifest's own type."""
    adapter = TypeAdapter(kind)

    def check(value: Any) -> Any:
        try:
            return value if value is None else adapter.validate_python(value)
        except ValidationError as error:
            raise typer.BadParameter(error.errors()[0]["msg"]) from None

    return check


_ALLOWED = ", ".join(sorted(OVERRULABLE))


def _reasons(names: list[str] | None) -> list[str] | None:
    unknown = [name for name in names or () if name not in OVERRULABLE]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} cannot be overruled; these can: {_ALLOWED}")
    return names


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("build")(build_command)
    app.command("diff")(diff)
    app.command("inspect")(inspect)
    app.command("header")(header)


def build_command(  # noqa: PLR0917 (typer makes options of them)
    source: Annotated[Path, typer.Option("--source", help="The source tree as the running binary was built from.")],
    patch: Annotated[Path, typer.Option("--patch", help="The fix, as patch -p1 takes it, without fuzz.")],
    command: Annotated[str, typer.Option("--build", help="The build command, run by sh in a copy of the tree.")],
    binary: Annotated[Path, typer.Option("--binary", help="What the command makes, relative to the tree.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle to write.")],
    running: Annotated[Path | None, typer.Option("--running", help="The binary that really runs.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", callback=_checked(Name), help="Name; default: that of FILE.")
    ] = None,
    version: Annotated[str, typer.Option("--version", callback=_checked(Version), help="Version of the patch.")] = "1",
    cve: Annotated[
        list[str] | None, typer.Option("--cve", callback=_checked(list[CveId]), help="A CVE id; may be repeated.")
    ] = None,
    replaces: Annotated[
        list[str] | None,
        typer.Option(
            "--replaces",
            callback=_checked(list[Name]),
            help="A patch that this one contains and makes go; may be repeated.",
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            callback=_checked(list[Name]),
            help="A patch that this one contains and comes back to; may be repeated.",
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            "--point",
            callback=_checked(list[Symbol]),
            help="A function whose caller may change over to the new code as it comes there; may be repeated.",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", callback=_reasons, help=f"Overrule a hazard; may be repeated. One of {_ALLOWED}."),
    ] = None,
    hook_limit: Annotated[
        float, typer.Option("--hook-limit", min=0.01, max=60, help="Seconds after which a hook of the patch is ended.")
    ] = 5.0,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the explanation as a page, with old and new code side by side.")
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Build a bundle from a source tree and a patch.

    The tree is copied and built before and after the patch, with one section per function; what differs in the
    objects becomes the bundle. The bundle is for one binary: the one that --running names; else the one that is
    built in place in the tree; else the command is run once more without any added flag, and that binary is kept
    beside the bundle as NAME.BINARY (for redis.graft and src/redis-server: redis.redis-server). Deploy that one.

    A table explains each changed function: what made it change, by which rung of the site ladder it will be entered,
    how soon threads leave it, what speaks against it. The rung is that of the file as it is loaded usually; podgraft
    check tells that of a process.

    The last line is `bundle FILE: N functions, M hazards overruled` or `refused: REASON`.
    """
    overruled = frozenset(map(Reason, allow or ()))
    below = {"replaces": tuple(replaces or ()), "over": tuple(over or ()), "points": tuple(point or ())}
    cves = tuple(cve or ())
    options = Options(
        source, patch, command, binary, output, running, name, version, cves, overruled, **below, hook_limit=hook_limit
    )

    def show(explanation: Explanation, rungs: Rungs = NONE) -> None:
        if html is not None:
            write_page(html, patch.name, explanation, rungs)
        if not json:
            _explain(explanation, rungs)

    def show_refused(explanation: Explanation) -> None:
        if explanation.refusal is not None:
            show(explanation)

    # The engine takes as long to load as its answer does, and the build is longer.
    with _ended_by_signals(), ready_engine() as engine:
        outcome = build(options, lambda text: err.print(text, markup=False, soft_wrap=True), show_refused)
        rungs = find_rungs(engine, output, outcome.running)
    show(outcome.explanation, rungs)
    manifest = outcome.bundle.manifest
    if json:
        print_json(
            {
                "bundle": str(output),
                "digest": outcome.bundle.digest,
                "running": str(outcome.running),
                "running_chosen": outcome.chosen,
                "functions": [{**row.document(), "rung": rungs.of(row.function)} for row in outcome.explanation.rows],
                "no_site": [problem.model_dump(mode="json") for problem in rungs.problems],
                "hazards": [_hazard(hazard) for hazard in outcome.explanation.hazards],
                "overruled": manifest.overruled,
                "hooks": [hook.model_dump(mode="json") for hook in manifest.hooks],
                "grounds": outcome.explanation.grounds,
            }
        )
        return
    out.print(f"for {outcome.running} ({outcome.chosen}), build id {manifest.module.build_id}", soft_wrap=True)
    for text in _hooks(manifest):
        out.print(f"hook: {text}", soft_wrap=True, markup=False)
    counts = f"{len(manifest.functions)} functions, {len(manifest.overruled)} hazards overruled"
    out.print(f"bundle {output}: {counts}", soft_wrap=True, markup=False)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End in good order, with all that was started, where a signal asks for it; one that is ignored stays so."""

    def end(number: int, _frame: FrameType | None) -> None:
        err.print(f"ended by {signal.Signals(number).name}")
        raise SystemExit(ExitCode.FAILED)

    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def diff(old_objects: Path, new_objects: Path, *, json: Json = False) -> None:
    """Compare two finished object trees (compiled with -g -ffunction-sections -fdata-sections)."""
    for folder in (old_objects, new_objects):
        if not folder.is_dir():
            raise typer.BadParameter(f"{folder} is no folder")
    pairs = read_folders(old_objects, new_objects)
    comparisons = compare_pairs(pairs)
    added = [
        {"object": label, "function": name}
        for label, comparison in sorted(comparisons.items())
        for name in sorted(comparison.new_functions)
    ]
    verdict = Verdict()
    check_hazards(comparisons, lambda: unchanged_objects(pairs), None, verdict)
    explanation = Explanation(explain(comparisons, verdict, None), tuple(verdict.hazards))
    if not json:
        _explain(explanation)
    verdict.settle()
    if not explanation.rows:
        raise Refusal(Reason.NO_CHANGE, f"{len(pairs)} objects compared, no function differs")
    if json:
        hazards = [_hazard(hazard) for hazard in explanation.hazards]
        print_json({"functions": [row.document() for row in explanation.rows], "new": added, "hazards": hazards})
        return
    for item in added:
        out.print(f"new: {item['function']} ({item['object']})", soft_wrap=True, markup=False)
    out.print(f"{len(explanation.rows)} functions changed, {len(added)} new, no hazard that refuses")


def inspect(bundle: Path, *, json: Json = False) -> None:
    """Show what is in a bundle. Signatures are named and not checked: `podgraft verify` does that."""
    content = read_bundle(bundle)
    if json:
        signed_by = [one.key for one in content.signatures]
        print_json({"digest": content.digest, "signed_by": signed_by, **content.manifest.model_dump(mode="json")})
        return
    _show_bundle(content)


def header(*, json: Json = False) -> None:
    """Print where podgraft.h is, for editors and compilers outside of podgraft build, which finds it by itself."""
    if json:
        print_json({"header": str(HEADER)})
        return
    out.print(str(HEADER), soft_wrap=True, markup=False)


def _show_bundle(content: Bundle) -> None:
    manifest = content.manifest
    for label, text in (
        ("name", f"{manifest.name} {manifest.version}"),
        ("digest", content.digest),
        ("fixes", ", ".join(manifest.cves) or "-"),
        ("module", f"{manifest.module.name}, build id {manifest.module.build_id}"),
        ("object", f"{manifest.object.size} bytes, sha256 {manifest.object.sha256}"),
        ("needs", f"Linux {manifest.requires.kernel}, {' '.join(manifest.requires.cpu)}"),
        ("replaces", ", ".join(manifest.replaces) or "no other bundle"),
        ("over", ", ".join(manifest.over) or "no other bundle"),
        *(("point", name) for name in manifest.points),
        *(("hook", text) for text in _hooks(manifest)),
        *(("overruled", text) for text in manifest.overruled or ["no hazard"]),
        ("signature", _signatures(content)),
    ):
        out.print(f"{label:<10} {text}", soft_wrap=True, markup=False)
    functions = Table("replaces", "at", "bytes", "cold parts", "by", box=None)
    for item in manifest.functions:
        parts = " ".join(f"{part.offset:#x}+{part.size}" for part in item.parts)
        entry = item.entry
        functions.add_row(entry.symbol, f"{entry.offset:#x}", str(entry.size), parts or "-", item.new_symbol)
    out.print(functions)
    references = Table("refers to", "as", "where", box=None)
    for ref in manifest.references:
        where = f"{ref.offset:#x}" if ref.offset is not None else ref.export or str(ref.value)
        references.add_row(ref.symbol, ref.kind, where)
    if manifest.references:
        out.print(references)


def _hooks(manifest: Manifest) -> list[str]:
    """Say what a bundle does besides replacing functions."""
    hooks = [f"{kind_name(h.kind)} {h.symbol}, at most {h.limit:g} s" for h in manifest.hooks]
    return [*hooks, "uses shadow variables"] if manifest.uses_shadow else hooks


def _signatures(content: Bundle) -> str:
    keys = ", ".join(one.key for one in content.signatures)
    return f"by key {keys} (not checked here: podgraft verify)" if keys else "none"


def _explain(explanation: Explanation, rungs: Rungs = NONE) -> None:
    """Print a table of the changed functions and a list of what speaks against the patch."""
    if explanation.rows:
        head = ("object", "function", "because of", "differs in", "old", "new", "site", "threads leave", "hazards")
        table = Table(box=None)
        for name in head:
            table.add_column(name, no_wrap=name == "site")
        for row in explanation.rows:
            hazards = ", ".join(dict.fromkeys(hazard.reason for hazard in row.hazards)) or "-"
            words = (row.object, row.function, row.cause or "-", row.why, str(row.old_size), str(row.new_size))
            table.add_row(*(escape(word) for word in (*words, rungs.of(row.function), row.outlook, hazards)))
        out.print(table)
    for hazard in explanation.hazards:
        out.print(f"{hazard.state}: {hazard.reason}: {hazard.detail}", soft_wrap=True, markup=False)
    for text in explanation.grounds:
        out.print(f"safe: {text}", soft_wrap=True, markup=False)
    for problem in rungs.problems:
        out.print(f"warning: apply will refuse it: {problem.reason}: {problem.detail}", soft_wrap=True, markup=False)
    if rungs.unknown is not None:
        out.print(f"sites are not known: {rungs.unknown}", soft_wrap=True, markup=False)


def _hazard(hazard: Hazard) -> dict[str, str]:
    names = ("reason", "state", "function", "detail", "hint")
    return {name: str(getattr(hazard, name)) for name in names}


def print_json(document: dict[str, Any]) -> None:
    """Print a result as --json promises it."""
    out.out(json_module.dumps(document, indent=2, sort_keys=True))
