"""The closing table."""

from rich.console import Console
from rich.table import Table

from hack.demo.load import PERCENTILES, describe
from hack.demo.result import Result


def show(result: Result, console: Console) -> None:
    """Print what happened to the servers, and what their clients felt of it."""
    console.print(_facts(result))
    console.print(_latencies(result))


def _facts(result: Result) -> Table:
    table = Table(title="What happened", show_header=False, title_justify="left")
    same = sum(server.before == server.after for server in result.servers)
    for what, value in (
        ("servers patched", result.patched),
        ("threads migrated", f"{result.threads_migrated}/{result.threads_total}"),
        ("requests", f"{result.counter('requests'):,}"),
        ("errors", str(result.counter("errors"))),
        ("wrong answers", str(result.counter("wrong"))),
        ("reconnects", str(result.counter("reconnects"))),
        ("restarts", str(result.restarts)),
        ("process start time unchanged", f"{same}/{len(result.servers)}"),
        ("longest hold of one thread", f"{result.longest_hold_us:,.0f} µs"),
        *((f"broken value, {phase}", " | ".join(sorted(set(said)))) for phase, said in result.answers.items()),
    ):
        table.add_row(what, value)
    return table


def _latencies(result: Result) -> Table:
    timeline, loads = result.timeline, [server.load for server in result.servers]
    table = Table(title="Latency of a request (ms)", title_justify="left")
    table.add_column("phase")
    for heading in ("seconds", "requests", *(f"p{percentile:g}" for percentile in PERCENTILES), "max"):
        table.add_column(heading, justify="right")
    for phase, start, end in (
        ("before", timeline.start, timeline.apply),
        ("patching", timeline.apply, timeline.applied),
        ("patched", timeline.applied, timeline.delete),
        ("reverting", timeline.delete, timeline.reverted),
        ("after", timeline.reverted, timeline.end),
    ):
        seen = describe(loads, start, end)
        figures = [f"{value:.2f}" for value in (*seen.percentiles, seen.longest)]
        table.add_row(phase, f"{end - start:.1f}", f"{seen.count:,}", *figures)
    return table
