"""What the user asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from podgraft_bundle.errors import Reason

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the user asks for; binary is relative to source."""

    source: Path
    patch: Path
    command: str
    binary: Path
    output: Path
    running: Path | None = None
    name: str | None = None
    version: str = "1"
    cves: tuple[str, ...] = ()
    allow: frozenset[Reason] = frozenset()
    replaces: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    hook_limit: float = 5.0
