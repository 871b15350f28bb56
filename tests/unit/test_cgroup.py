"""Container ids in cgroup files of every runtime."""

from pathlib import Path

import pytest

from podgraft_agent.cgroup import container_ids

FILES = Path(__file__).parent / "cgroups"
OURS = "3f4e5d6c7b8a9f0e1d2c3b4a5968778695a4b3c2d1e0f9e8d7c6b5a493827160"
NODE = "0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9"
EXPECTED: dict[str, set[str]] = {
    "containerd-v2-systemd": {OURS},
    "containerd-v2-systemd-from-inside": {OURS},
    "containerd-v2-cgroupfs": {OURS},
    "containerd-v1-cgroupfs": {OURS},
    "containerd-v1-systemd-colons": {OURS},
    "containerd-guaranteed": {OURS},
    "containerd-nested-init-scope": {OURS},
    "crio-v2": {OURS},
    "crio-v2-crun-container": {OURS},
    "crio-v1": {OURS},
    "crio-conmon": set(),
    "docker-v1-cgroupfs": {OURS},
    "docker-v2-systemd": {OURS},
    "docker-plain": {OURS},
    "kind-node-in-docker": {OURS, NODE},
    "kind-v1": {OURS, NODE},
    "kind-node-in-podman": {OURS, NODE},
    "docker-in-a-pod": {OURS, NODE},
    "custom-cgroup-root": {OURS},
    "sibling-from-inside": {OURS},
    "static-pod": {OURS},
    "containerd-v1-systemd": {OURS},
    "crio-v2-cgroupfs": {OURS},
    "crio-v2-cgroupfs-crun": {OURS},
    "crio-conmon-cgroupfs": set(),
    "docker-v2-cgroupfs": {OURS},
    "docker-v1-systemd": {OURS},
    "docker-plain-v1": {OURS},
    "podman-conmon": set(),
    "podman-rootless": {OURS},
    "podman-split": {OURS},
    "podman": {OURS},
    "host-service": set(),
    "host-v1": set(),
    "pod-slice-alone": set(),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_container_ids(name: str) -> None:
    """Each form gives exactly the containers that the process is in."""
    assert container_ids((FILES / name).read_text()) == EXPECTED[name]


def test_every_file_is_tested() -> None:
    """A fixture that nobody expects anything of is a mistake."""
    assert {path.name for path in FILES.iterdir()} == EXPECTED.keys()
