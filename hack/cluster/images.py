"""Images for the nodes without a registry: only the blobs that a node lacks are sent to its containerd."""

import concurrent.futures
import json
import subprocess
import tarfile
from pathlib import Path

from hack.cluster.layout import NODES, State, machine_name
from hack.cluster.local import containerd_socket
from hack.tools import ToolFailedError, run, say, step


def push_to_nodes(state: State, layout: Path) -> None:
    """Make the images of an OCI layout known on every node; blobs that are there are not sent again.

    Raises:
        ToolFailedError: a node does not run or refuses the images.
    """
    with concurrent.futures.ThreadPoolExecutor(len(NODES)) as pool:
        sockets = [containerd_socket(state, number) for number in NODES]
        lacking = list(pool.map(lambda socket: _lacking(socket, layout), sockets))
        if not any(lacking):
            say("  ✓ the nodes have all images already")
            return
        size = sum(file.stat().st_size for blobs in lacking for file in blobs)
        with step(f"images to {len(NODES)} nodes ({size / 1e6:.0f} MB)"):
            for number, sent in zip(NODES, pool.map(_send, sockets, [layout] * len(NODES), lacking), strict=True):
                if sent.returncode != 0:
                    raise ToolFailedError(f"{machine_name(number)} refuses the images: {sent.stderr.decode()[-500:]}")


def _lacking(socket: str, layout: Path) -> list[Path]:
    """Return the blobs of the layout that a node does not have; empty when it knows all images, too."""
    ctr = ("ctr", "--address", socket, "--namespace", "k8s.io")
    there = {line.split(":")[1] for line in run(*ctr, "content", "ls", "--quiet").split()}
    known = dict(line.split()[0:3:2] for line in run(*ctr, "images", "ls").splitlines()[1:])
    manifests = json.loads((layout / "index.json").read_text())["manifests"]
    wanted = {one["annotations"]["io.containerd.image.name"]: one["digest"] for one in manifests}
    if all(known.get(name) == digest for name, digest in wanted.items()):
        return []
    # The small blobs (manifests) always go along: containerd looks for them in the archive itself.
    small = 65536
    blobs = sorted((layout / "blobs" / "sha256").iterdir())
    return [blob for blob in blobs if blob.name not in there or blob.stat().st_size < small]


def _send(socket: str, layout: Path, blobs: list[Path]) -> subprocess.CompletedProcess[bytes]:
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stderr is not None  # noqa: S101, PT018 # asked for above
        try:
            with tarfile.open(fileobj=child.stdin, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                for file in (layout / "oci-layout", layout / "index.json", *blobs):
                    archive.add(file, arcname=str(file.relative_to(layout)))
            child.stdin.close()
        except BrokenPipeError:
            pass  # It ended early; what it said is in stderr.
        error = child.stderr.read()
    return subprocess.CompletedProcess(command, child.returncode, b"", error)
