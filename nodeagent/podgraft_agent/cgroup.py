"""Container ids in /proc/PID/cgroup, as containerd, CRI-O, docker and podman write them, on cgroup v1 and v2."""

import re

# The last part of a path component: an optional runtime prefix, 64 hex digits, an optional ".scope".
# containerd's systemd driver on v1 joins with colons: "kubepods-podUID.slice:cri-containerd:ID".
# "crio-conmon-ID.scope" and "libpod-conmon-ID.scope" are monitors beside the container and must not match; podman calls
# the container itself "libpod-payload-ID" where both are parts of one service (podman-run(1), --cgroups=split).
_COMPONENT = re.compile(r"(?:^|:)(?:cri-containerd[-:]|crio-|docker-|libpod-(?:payload-)?)?([0-9a-f]{64})(?:\.scope)?$")


def container_ids(text: str) -> frozenset[str]:
    """Return the ids of all containers that a process is in, nested ones included.

    Args:
        text: /proc/PID/cgroup, lines "hierarchy:controllers:path" (cgroups(7)). Paths are relative to the reader's
            cgroup namespace and may begin with "/../..".
    """
    ids = set()
    for line in text.splitlines():
        path = line.split(":", 2)[-1]
        for component in path.split("/"):
            match = _COMPONENT.search(component)
            if match:
                ids.add(match[1])
    return frozenset(ids)
