"""`python3 -m hack.cluster COMMAND`; up and env print the line that a shell can evaluate."""

import argparse
import sys
from pathlib import Path

from hack.cluster import binaries, commands
from hack.cluster.layout import State
from hack.tools import main


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    verbs = parser.add_subparsers(dest="command", required=True)
    verbs.add_parser("up", help="start the cluster, or do nothing when it runs")
    verbs.add_parser("down", help="remove it, also after an attempt that failed")
    verbs.add_parser("env", help="print what a shell needs to talk to it")
    verbs.add_parser("running", help="exit code 0 when the cluster is up")
    verbs.add_parser("path", help="build kubectl and helm where they are missing, print their folder")
    push = verbs.add_parser("push", help="put the images of an OCI layout on every node")
    push.add_argument("layout", type=Path)
    return parser.parse_args()


def _main() -> None:
    arguments = _arguments()
    match arguments.command:
        case "up":
            commands.up()
        case "down":
            commands.down()
        case "push":
            commands.push(arguments.layout)
        case "running":
            sys.exit(0 if commands.is_up() else 1)
        case "path":
            print(binaries.ensure())
    if arguments.command in {"up", "env"}:
        print(f"export KUBECONFIG={State.default().admin}")


if __name__ == "__main__":
    main(_main)
