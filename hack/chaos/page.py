"""docs/chaos.md: the text that people wrote, and behind it the tables of the last run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.tools import REPOSITORY

PAGE = REPOSITORY / "docs" / "chaos.md"
HEADING = "## The last run"
# A shorter run proves less, and leaves the page as it is.
SHORTEST_MINUTES = 30.0


@dataclass(frozen=True)
class Run:
    """One run. events: how often each kind happened; outcome: the closing table; load: average of 15 minutes."""

    minutes: float
    seed: int
    processors: int
    load: float
    events: Mapping[str, int]
    outcome: tuple[tuple[str, str], ...]


def write(run: Run, page: Path = PAGE) -> None:
    """Put a run in place of the one before; good or bad, but of the full length."""
    if run.minutes >= SHORTEST_MINUTES:
        text = page.read_text().partition(HEADING)[0].rstrip()
        page.write_text(f"{text}\n\n{_section(run)}")


def _section(run: Run) -> str:
    events = [(kind, str(count)) for kind, count in sorted(run.events.items())]
    return "\n".join((
        HEADING,
        "",
        f"`make chaos MINUTES={run.minutes:g} SEED={run.seed}`, on {run.processors} processors that were shared with",
        f"other work (load {run.load:.0f}):",
        "",
        *_table("event", "count", (*events, ("all", str(sum(run.events.values()))))),
        "",
        *_table("what came of it", "", run.outcome),
        "",
    ))  # fmt: skip


def _table(left: str, right: str, rows: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"| {left} | {right} |", "|---|---|", *(f"| {one} | {other} |" for one, other in rows)]
