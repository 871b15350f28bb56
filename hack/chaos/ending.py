"""After the last event: does everything come to rest, with the right code everywhere, and nothing left behind?"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hack.chaos.events import Chaos
from hack.cluster.layout import NODES
from hack.fleet import bundles
from hack.fleet.shop import PATCH
from hack.fleet.waiting import until
from hack.tools import ToolFailedError, say

SETTLE_SECONDS = 420.0
# main, 3 I/O, 3 background: a thread more is one that we have left there.
THREADS = 7


@dataclass
class Ending:
    """What is not as it should be, after the chaos with the patch in, and after it has been taken back."""

    pods: int = 0
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    failed: list[tuple[str, float]] = field(default_factory=list)
    excused: int = 0
    wrong_answers: int = 0

    @property
    def is_good(self) -> bool:
        """The goals: 0 failed, 0 wrong, 0 stuck."""
        return not (self.wrong or self.stuck or self.failed or self.wrong_answers)


def settle(chaos: Chaos) -> Ending:
    """Let the state converge with the patch in, then without it, and note what does not."""
    ending = Ending()
    chaos.paused = False
    _expect(ending, "a LivePatch that can be written", chaos.apply)
    _expect(ending, "operator and agents are ready", lambda: chaos.system.is_whole(len(NODES)))
    _expect(ending, "all pods run", lambda: len(chaos.shop.servers()) == chaos.replicas)
    done = f"{chaos.replicas}/{chaos.replicas}"
    _expect(ending, f"the LivePatch is Ready, {done}", lambda: chaos.shop.is_ready() and chaos.shop.patched() == done)
    ending.wrong += _wrong(chaos, bundles.GENERATIONS[chaos.bundle], "patched")
    ending.pods = chaos.replicas
    chaos.shop.kubectl.run("delete", "livepatch", PATCH, "--wait=false")
    _expect(ending, "the LivePatch goes", lambda: not chaos.shop.kubectl.json("get", "livepatches")["items"])
    _expect(ending, "no NodePatch is left", lambda: not chaos.shop.kubectl.json("get", "nodepatches")["items"])
    ending.wrong += _wrong(chaos, bundles.OLD, "reverted")
    _expect(ending, "no helper is left in a server", lambda: all(_threads(pid) == THREADS for pid in _pids(chaos)))
    time.sleep(1)
    chaos.ledger.collect()
    ending.excused, ending.failed = chaos.excuses.split(chaos.ledger.failures)
    ending.wrong_answers = chaos.ledger.wrong
    return ending


def show(chaos: Chaos, ending: Ending, console: Console) -> None:
    """Print the closing tables."""
    events = Table(title="Events", title_justify="left")
    events.add_column("kind")
    events.add_column("count", justify="right")
    for kind, count in sorted(chaos.counts.items()):
        events.add_row(kind, str(count))
    events.add_row("all", str(sum(chaos.counts.values())), style="bold")
    console.print(events)
    found = Table(title="What came of it", title_justify="left", show_header=False)
    for what, value in outcome(chaos, ending):
        found.add_row(what, value)
    console.print(found)
    by_pod = Counter(pod for pod, _ in ending.failed)
    for line in (*ending.wrong, *ending.stuck, *(f"{pod}: {count} failed requests" for pod, count in by_pod.items())):
        console.print(f"[bold red]✗[/] {line}", highlight=False)
    for pod, due in ending.failed[:20]:
        console.print(f"  {pod} {due:.3f} ends {[f'{end:.1f}' for end in chaos.excuses.ends.get(pod, ())]}")


def outcome(chaos: Chaos, ending: Ending) -> tuple[tuple[str, str], ...]:
    """Return the lines of the closing table."""
    return (
        ("requests", f"{chaos.ledger.requests:,}"),
        ("failed because their server was killed or removed", str(ending.excused)),
        ("failed for any other reason", str(len(ending.failed))),
        ("wrong answers", str(ending.wrong_answers)),
        (f"wrong code generations at the end, of {ending.pods} pods", str(len(ending.wrong))),
        ("stuck", str(len(ending.stuck))),
    )


def _expect(ending: Ending, what: str, ask: Callable[[], object]) -> None:
    began = time.monotonic()
    try:
        until(what, ask, SETTLE_SECONDS, pause=1.0)
    except ToolFailedError as error:
        ending.stuck.append(str(error))
    say(f"  {time.monotonic() - began:5.1f} s  {what}")


def _wrong(chaos: Chaos, expected: int, phase: str) -> list[str]:
    found = chaos.shop.generations()
    return [f"{phase}: {pod} runs code {one}, not {expected}" for pod, one in found.items() if one != expected]


def _pids(chaos: Chaos) -> list[int]:
    return [server.pid for server in chaos.shop.servers().values()]


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
