"""Where a standard stream is closed, its number is the next that the kernel gives away."""

from __future__ import annotations

import fcntl
import os
import socket

STANDARD_ERROR = 2


def above_standard(descriptor: int) -> int:
    """The same with a number that no standard stream has: whoever writes to a closed one must not meet us."""
    if descriptor > STANDARD_ERROR:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STANDARD_ERROR + 1)
    finally:
        os.close(descriptor)


def lifted(end: socket.socket) -> socket.socket:
    """Likewise of a socket."""
    return end if end.fileno() > STANDARD_ERROR else socket.socket(fileno=above_standard(end.detach()))


def fill_standard() -> None:
    """Have something there, so that nothing that is opened or received later gets such a number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
