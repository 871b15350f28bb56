"""`python3 -m hack.cluster COMMAND`; up and env print the line that a shell can evaluate."""

import argparse
import sys
from pathlib import Path

from hack.cluster import binaries, kind, local
from hack.cluster.images import push_to_nodes
from hack.cluster.layout import State
from hack.images import build
from hack.tools import main


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start the cluster, or do nothing when it runs")
    commands.add_parser("down", help="remove it, also after an attempt that failed")
    commands.add_parser("env", help="print what a shell needs to talk to it")
    commands.add_parser("running", help="exit code 0 when the cluster is up")
    commands.add_parser("path", help="build kubectl and helm where they are missing, print their folder")
    push = commands.add_parser("push", help="put the images of an OCI layout on every node")
    push.add_argument("layout", type=Path)
    return parser.parse_args()


def up() -> None:
    """Have the cluster up, whichever kind this machine allows, with the image that every pod needs."""
    if kind.is_usable():
        kind.up(State.default())
        return
    # The image comes from the cache or is built while there is no cluster yet that would wait for it.
    layout = build.pause()
    push_to_nodes(local.up(), layout)


def down() -> None:
    """Remove the cluster, whatever there is of it."""
    if kind.is_usable():
        kind.down(State.default())
    else:
        local.down()


def push(layout: Path) -> None:
    """Put the images of an OCI layout on every node."""
    if kind.is_usable():
        kind.push(layout)
    else:
        push_to_nodes(State.default(), layout)


def is_up() -> bool:
    """Tell whether there is a cluster that works."""
    return kind.is_up() if kind.is_usable() else local.is_up(State.default())


def _main() -> None:
    arguments = _arguments()
    match arguments.command:
        case "up":
            up()
        case "down":
            down()
        case "push":
            push(arguments.layout)
        case "running":
            sys.exit(0 if is_up() else 1)
        case "path":
            print(binaries.ensure())
    if arguments.command in {"up", "env"}:
        print(f"export KUBECONFIG={State.default().admin}")


if __name__ == "__main__":
    main(_main)
