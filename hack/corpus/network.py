"""A network of our own, with loopback alone: ports are free, and no load leaves the machine (network_namespaces(7))."""

import ctypes
import fcntl
import os
import socket
import struct

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP, IFREQ_SIZE = 0x8914, 1, 40  # netdevice(7)


def enter() -> None:
    """Put this thread and every child to come into a new network with loopback up. Raises OSError without root."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare(CLONE_NEWNET): {os.strerror(code)} (root is needed)")
    with socket.socket() as any_socket:
        request = struct.pack("16sh", b"lo", IFF_UP).ljust(IFREQ_SIZE, b"\0")
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)
