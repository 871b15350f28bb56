"""The cluster, whichever kind this machine allows: up, down, push, is_up."""

from pathlib import Path

from hack.cluster import kind, local
from hack.cluster.images import push_to_nodes
from hack.cluster.layout import State
from hack.images import build


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
