"""`python -m hack.demo [--local] [--keep]`: exit code 0 when everything was as promised, else 1."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from hack.cluster import commands as cluster
from hack.cluster.layout import State
from hack.demo import bundle, on_cluster, on_process, picture, report
from hack.demo.kubernetes import Kubectl
from hack.demo.result import Result, broken_promises
from hack.images import build
from hack.sources.redis import CVE
from hack.tools import REPOSITORY, main, say

OUT = REPOSITORY / "out"


@contextmanager
def _cluster(*, keep: bool) -> Iterator[None]:
    """Have the cluster up; take it down afterwards, whatever happens, unless it is to be kept."""
    try:
        cluster.up()
        yield
    finally:
        if keep:
            say(f"the cluster is kept: export KUBECONFIG={State.default().admin}  (make cluster-down removes it)")
        else:
            cluster.down()


def _on_cluster(console: Console, *, keep: bool) -> Result:
    layout = build.everything()
    bundle.ensure()
    with _cluster(keep=keep):
        cluster.push(layout)
        on_cluster.install(State.default().admin)
        on_cluster.deploy(Kubectl(State.default().admin, on_cluster.NAMESPACE))
        return on_cluster.play(console, on_cluster.Pauses())


def _main() -> None:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--local", action="store_true", help="one process and the command line, no cluster")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    arguments = parser.parse_args()
    console, began = Console(), time.monotonic()
    result = on_process.play(console) if arguments.local else _on_cluster(console, keep=arguments.keep)
    console.print()
    report.show(result, console)
    title = f"Redis under load while {CVE} is patched, and reverted"
    files = picture.draw(result, title, OUT / ("demo-local" if arguments.local else "demo"))
    console.print("picture: " + ", ".join(str(file.relative_to(REPOSITORY)) for file in files), highlight=False)
    broken = broken_promises(result)
    for sentence in broken:
        console.print(f"[bold red]✗[/] {sentence}", highlight=False)
    took = time.monotonic() - began
    console.print(
        f"[bold red]not as promised[/] ({took:.0f} s)" if broken else f"[bold green]✓ as promised[/] ({took:.0f} s)"
    )
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main(_main)
