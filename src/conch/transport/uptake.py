"""How far a peer has taken what was written to it, as the kernel knows it: more than the buffers of transports tell.

A buffer above the kernel's shrinks in steps of a third of a socket's memory, which may be megabytes; and uvloop's TLS
hides what waits below it.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from typing import Any, Final

#: What `TCP_INFO` must hold, and where its `tcpi_bytes_acked` is.
_INFO_SIZE: Final = 128
_ACKED_AT: Final = 120

_acked = struct.Struct("=Q").unpack_from
_count = struct.Struct("=i")


def taken(transport: asyncio.Transport) -> int:
    """A number that grows while the peer takes what was written: bytes acknowledged."""
    sock = _socket(transport)
    if sock is not None:
        try:
            found: int = _acked(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE), _ACKED_AT)[0]
        except (OSError, struct.error):
            pass  # an older kernel, or a socket that is closed already
        else:
            return found
    return -transport.get_write_buffer_size()


def untaken(transport: asyncio.Transport) -> int:
    """Bytes that wait for the peer: those in the transport, and of TLS those in the kernel as well.

    Of TLS 0 means that nothing waits below either, unless the kernel has just been emptied and uvloop had no turn yet.
    """
    size = transport.get_write_buffer_size()
    if not size and transport.get_extra_info("ssl_object") is not None:
        sock = _socket(transport)
        if sock is not None:
            try:
                size = _count.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_count.size)))[0]
            except (OSError, ValueError):
                return 0
    return size


def still_owed(transport: asyncio.Transport, before: bool) -> tuple[bool, bool]:
    """Whether the peer has not taken all that was written, and the `before` to be given when it is asked again.

    Of TLS nothing must be left twice in a row: in between, uvloop has passed on what it had kept back.
    """
    if transport.get_write_buffer_size():
        return True, before
    now = untaken(transport) > 0
    return before or now, now


def _socket(transport: asyncio.Transport) -> Any:
    """The socket of TCP; None where the transport is something else."""
    sock = transport.get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None
