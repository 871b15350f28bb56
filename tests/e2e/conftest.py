"""The three-node cluster with the chart on it. One that is up already (`make cluster-up`) is used and left alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.cluster import binaries, commands
from hack.cluster.layout import State
from hack.demo import on_cluster
from hack.demo.kubernetes import Kubectl
from hack.images import build


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[Path]:
    """A cluster of three nodes with all images, and kubectl and helm on PATH."""
    layout = build.everything()
    kept = commands.is_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{binaries.ensure()}", prepend=":")
        try:
            commands.up()
            commands.push(layout)
            yield State.default().admin
        finally:
            if not kept:
                commands.down()


@pytest.fixture(scope="session")
def kubectl(kubeconfig: Path) -> Kubectl:
    """Kubectl in the demo's namespace; podgraft is not installed yet."""
    return Kubectl(kubeconfig, on_cluster.NAMESPACE)
