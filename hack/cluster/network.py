"""The wire between host and machines: one bridge, one veth pair a machine."""

from pathlib import Path

from hack.cluster.layout import BRIDGE, HOST_ADDRESS, MACHINES, NODES, machine_address, pod_range, veth
from hack.tools import ToolFailedError, run

INTERFACES = Path("/sys/class/net")


def make_bridge() -> None:
    """Make the bridge; the host is reachable on it, and reaches the API server through it."""
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def plug_in(number: int, pid: int) -> None:
    """Connect the network namespace of a process to the bridge; it finds the cable as `eth0`."""
    run("ip", "link", "add", veth(number), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
    run("ip", "link", "set", veth(number), "master", BRIDGE, "up")


def remove() -> None:
    """Remove bridge and cables, as many of them as there are."""
    for number in MACHINES:
        unplug(number)
    if (INTERFACES / BRIDGE).exists():
        _delete(BRIDGE)


def unplug(number: int) -> None:
    """Remove the cable of a machine, if there is one."""
    if (INTERFACES / veth(number)).exists():
        _delete(veth(number))


def _delete(name: str) -> None:
    try:
        run("ip", "link", "delete", name)
    except ToolFailedError:
        # A cable goes by itself when the kernel has taken down the dead machine's namespace, a moment after its death.
        if (INTERFACES / name).exists():
            raise


def configure(number: int) -> None:
    """Inside a machine: addresses, the routes to the other nodes' pods, forwarding."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{machine_address(number)}/24", "dev", "eth0")
    run("ip", "link", "set", "eth0", "up")
    run("ip", "route", "add", "default", "via", HOST_ADDRESS)
    for other in NODES:
        if other != number:
            run("ip", "route", "add", pod_range(other), "via", machine_address(other))
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def is_own_namespace(pid: int) -> bool:
    """Tell whether a process has left our network namespace yet."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except (FileNotFoundError, ProcessLookupError):
        return False
