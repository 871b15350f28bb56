"""`python3 -m hack.cluster up|down|env|push LAYOUT`; up and env print the line that a shell can evaluate."""

import argparse
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
    commands.add_parser("path", help="build kubectl and helm where they are missing, print their folder")
    push = commands.add_parser("push", help="put the images of an OCI layout on every node")
    push.add_argument("layout", type=Path)
    return parser.parse_args()


def _local_up() -> None:
    # The image comes from the cache or is built while there is no cluster yet that would wait for it.
    layout = build.pause()
    push_to_nodes(local.up(), layout)


def _main() -> None:
    arguments = _arguments()
    with_kind = kind.is_usable()
    if arguments.command == "up":
        kind.up(State.default()) if with_kind else _local_up()
    elif arguments.command == "down":
        kind.down(State.default()) if with_kind else local.down()
    elif arguments.command == "push":
        kind.push(arguments.layout) if with_kind else push_to_nodes(State.default(), arguments.layout)
    elif arguments.command == "path":
        print(binaries.ensure())
    if arguments.command in {"up", "env"}:
        print(f"export KUBECONFIG={State.default().admin}")


if __name__ == "__main__":
    main(_main)
