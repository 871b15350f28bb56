"""The cluster where docker and kind work: one kind cluster of three nodes in place of our own machines."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from hack.cluster.layout import State
from hack.tools import REPOSITORY, run, say, step

NAME = "podgraft"


@functools.cache
def is_usable() -> bool:
    """Tell whether kind is installed and a docker engine answers; a docker client alone is not enough."""
    if not (shutil.which("kind") and shutil.which("docker")):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def up(state: State) -> None:
    """Start the kind cluster, or do nothing when there is one of our name."""
    state.root.mkdir(parents=True, exist_ok=True)
    if is_up():
        say("  ✓ the kind cluster is up already")
        run("kind", "export", "kubeconfig", "--name", NAME, "--kubeconfig", state.admin)
        return
    with step("kind cluster of three nodes"):
        config = REPOSITORY / "kind-config.yaml"
        run(
            "kind",
            "create",
            "cluster",
            "--name",
            NAME,
            "--config",
            config,
            "--kubeconfig",
            state.admin,
            "--wait",
            "120s",
        )


def is_up() -> bool:
    """Tell whether there is a kind cluster of our name."""
    return NAME in run("kind", "get", "clusters").split()


def down(state: State) -> None:
    """Delete the kind cluster, if there is one."""
    with step("remove the kind cluster"):
        run("kind", "delete", "cluster", "--name", NAME, "--kubeconfig", state.admin)


def push(layout: Path) -> None:
    """Load the images of an OCI layout into every node."""
    with step("load images into kind"), tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "images.tar"
        run("tar", "-C", layout, "-cf", archive, "oci-layout", "index.json", "blobs")
        run("kind", "load", "image-archive", archive, "--name", NAME)
