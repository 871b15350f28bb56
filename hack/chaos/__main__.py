"""`python -m hack.chaos [--minutes N] [--seed N]`: exit code 0 when nothing failed, is wrong, or is stuck."""

import argparse
import os
import random
import sys
import time

from rich.console import Console

from hack.chaos import page
from hack.chaos.ending import outcome, settle, show
from hack.chaos.events import Chaos
from hack.cluster import commands as cluster
from hack.cluster import kind
from hack.cluster.layout import State
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.fleet import bundles
from hack.fleet.shop import Shop
from hack.fleet.system import System
from hack.images import build
from hack.tools import ToolFailedError, main, say

NAMESPACE = "chaos"


def _play(minutes: float, seed: int, console: Console) -> bool:
    kubeconfig = State.default().admin
    on_cluster.install(kubeconfig, "--set=operator.agentSeconds=15")
    shop = Shop(Kubectl(kubeconfig, NAMESPACE))
    shop.close()
    chaos = Chaos(shop, System(kubeconfig), random.Random(seed))  # noqa: S311 - repeatable, not secret
    shop.open(chaos.replicas, rate=20)
    chaos.apply()
    chaos.began = time.monotonic()
    chaos.run(minutes * 60)
    say(f"{time.monotonic() - chaos.began:6.0f} s  the last event; what comes now is rest")
    ending = settle(chaos)
    show(chaos, ending, console)
    load, processors = os.getloadavg()[2], os.cpu_count() or 1
    page.write(page.Run(minutes, seed, processors, load, chaos.counts, outcome(chaos, ending)))
    return ending.is_good


def _main() -> None:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if kind.is_usable():
        raise ToolFailedError("chaos needs the cluster of namespaces: it switches machines off")
    layout, console = build.everything(), Console()
    bundles.ensure()
    kept = cluster.is_up()
    try:
        cluster.up()
        cluster.push(layout)
        good = _play(arguments.minutes, arguments.seed, console)
    finally:
        if not kept:
            cluster.down()
    verdict = "[bold green]✓ 0 failed, 0 wrong, 0 stuck[/]" if good else "[bold red]not as promised[/]"
    console.print(f"{verdict} (seed {arguments.seed}, {arguments.minutes:g} minutes)")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main(_main)
