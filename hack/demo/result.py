"""Everything a run of the demo has seen, and whether it is what was promised."""

from dataclasses import dataclass, field
from typing import Any

from hack.demo import observable
from hack.demo.load import Load


@dataclass(frozen=True)
class Identity:
    """What stays the same as long as nothing is restarted. start_time: ticks since boot, of the server process."""

    container: str
    restarts: int
    start_time: int


@dataclass(frozen=True)
class Server:
    """One Redis before and after all, and the load on it."""

    name: str
    node: str
    before: Identity
    after: Identity
    load: Load


@dataclass(frozen=True)
class Timeline:
    """Seconds since the epoch. Patch: apply to applied; revert: delete to reverted."""

    start: float
    apply: float
    applied: float
    delete: float
    reverted: float
    end: float


@dataclass
class Result:
    """A run. answers: what each server said about the broken value, by phase ("before", "patched", "reverted")."""

    timeline: Timeline
    servers: list[Server]
    patched: str
    threads_total: int
    threads_migrated: int
    longest_hold_us: float
    answers: dict[str, list[str]] = field(default_factory=dict)

    def counter(self, name: str) -> int:
        """Return the sum of one of the load generators' counters."""
        return sum(int(server.load.counters[name]) for server in self.servers)

    @property
    def restarts(self) -> int:
        """Restarts of containers while the demo ran."""
        return sum(server.after.restarts - server.before.restarts for server in self.servers)


def broken_promises(result: Result) -> list[str]:
    """Return a sentence for everything that is not as promised; empty when all is well."""
    count = len(result.servers)
    same = [server.before == server.after for server in result.servers]
    expected: list[tuple[str, Any, Any]] = [
        ("servers patched", result.patched, f"{count}/{count}"),
        ("threads migrated", result.threads_migrated, result.threads_total),
        ("errors", result.counter("errors"), 0),
        ("wrong answers", result.counter("wrong"), 0),
        ("reconnects", result.counter("reconnects"), 0),
        ("restarts", result.restarts, 0),
        ("same container and process start time", same, [True] * count),
        ("the observable before", result.answers.get("before"), [observable.OLD] * count),
        ("the observable when patched", result.answers.get("patched"), [observable.FIXED] * count),
        ("the observable when reverted", result.answers.get("reverted"), [observable.OLD] * count),
    ]
    broken = [f"{what}: {seen}, promised was {promised}" for what, seen, promised in expected if seen != promised]
    if result.threads_total < count:
        broken.append(f"only {result.threads_total} threads in {count} servers: nothing was really patched")
    broken += [f"{server.name}: no requests" for server in result.servers if not server.load.due.size]
    return broken
