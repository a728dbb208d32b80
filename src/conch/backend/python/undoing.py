"""Things that have to be closed, made in steps: what is there already is freed where a later step fails."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Protocol, TypeVar


class Closes(Protocol):
    def close(self) -> None: ...


Made = TypeVar("Made", bound=Closes)


def undone(stack: ExitStack, made: Made) -> Made:
    """`made`, which the stack closes."""
    stack.callback(made.close)
    return made


def pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of one connection that keeps packets apart."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return undone(ours, one), undone(theirs, other)


def pipe(reads: ExitStack, writes: ExitStack) -> tuple[int, int]:
    """As `os.pipe`."""
    end, begin = os.pipe()
    reads.callback(os.close, end)
    writes.callback(os.close, begin)
    return end, begin
