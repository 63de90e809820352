"""Descriptors above the standard streams: if one of these is closed, the kernel gives its number to the next descriptor."""

from __future__ import annotations

import fcntl
import os
import socket

STANDARD_ERROR = 2


def above_standard(descriptor: int) -> int:
    """The same descriptor with a number above 2, so that code that writes to a closed standard stream does not write to ours."""
    if descriptor > STANDARD_ERROR:
        return descriptor
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, STANDARD_ERROR + 1)
    finally:
        os.close(descriptor)


def pipe() -> tuple[int, int]:
    """A pipe whose ends, for reading and for writing, have numbers above 2."""
    reading, writing = os.pipe()
    try:
        reading = above_standard(reading)
    except OSError:
        os.close(writing)
        raise
    try:
        return reading, above_standard(writing)
    except OSError:
        os.close(reading)
        raise


def lifted(end: socket.socket) -> socket.socket:
    """The same socket with a number above 2."""
    return end if end.fileno() > STANDARD_ERROR else socket.socket(fileno=above_standard(end.detach()))


def fill_standard() -> None:
    """Open the closed standard streams on `/dev/null`, so that no later descriptor gets such a number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
