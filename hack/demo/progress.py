"""Follow a LivePatch while something else is waited for."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from hack.demo.kubernetes import Kubectl

FIELDS = (".summary.patched", ".summary.threads", ".maxHeldMicroseconds", ".conditions[?(@.type=='Ready')].reason")
TEMPLATE = "|".join(f"{{.status{field}}}" for field in FIELDS) + '{"\\n"}'


@dataclass
class Seen:
    """The latest that the resource told, and the longest hold ever told."""

    patched: str = ""
    threads: str = ""
    longest_hold_us: float = 0.0
    changes: int = 0


@contextmanager
def follow(kubectl: Kubectl, name: str, console: Console) -> Iterator[Seen]:
    """Print a line for each change of the LivePatch's status while the block runs."""
    seen, began = Seen(), time.monotonic()

    def read() -> None:
        last = ""
        for line in stream:
            if line == last or line.count("|") != len(FIELDS) - 1:
                continue
            last, (seen.patched, seen.threads, held, reason) = line, line.split("|")
            seen.longest_hold_us = max(seen.longest_hold_us, float(held or 0))
            seen.changes += 1
            took = time.monotonic() - began
            console.print(
                f"  [dim]+{took:4.1f} s[/]  pods {seen.patched or '-'}  threads {seen.threads or '-'}  {reason}"
            )

    # By selector, not by name: a watch may begin before there is such a resource.
    selector = f"--field-selector=metadata.name={name}"
    with kubectl.stream("get", "livepatch", selector, "--watch", "-o", f"jsonpath={TEMPLATE}") as stream:
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        yield seen
        # The last change is on its way still when whoever waits for it has got it already.
        time.sleep(0.3)
    reader.join()
