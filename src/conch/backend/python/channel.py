"""What the server and a worker process say to each other: message heads, and the memory that both see.

Three sockets of whole packets (SOCK_SEQPACKET) join them. On the *main* one the server sends a batch and the worker
sends its answer; one batch is under way at a time. On the *calls* one the worker speaks whenever it likes, from any
thread: log lines, answers given through a response sender, "is it cancelled?". On the *asks* one the model, from any
thread, calls the server's other models, has them loaded, and keeps metrics. Packets stay small: what exceeds `INLINE`
bytes lies in an `Area`: there is one for batches, and for an answer the batch says which, so nothing has to be cleaned
up. On the asks socket, where much may be under way at once, large contents come in a file of their own.

This module is used inside the worker, whose interpreter may have numpy and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import socket
import struct
import time
from typing import Union

#: Payloads up to this many bytes travel in the packet itself.
INLINE = 32_768
#: No packet is longer.
PACKET = INLINE + 4096
#: Where in an area or packet the elements of a tensor may begin.
ALIGN = 64

# Kinds of messages to the worker, on the main socket.
START, EXECUTE, PROBE, STOP = 1, 2, 3, 4
# Kinds of messages to the server, on the main socket.
READY, REFUSED, COMPLETED, DONE, STATE = 17, 18, 19, 20, 21
# Kinds of messages to the server, on the calls socket. CANCELLED is answered with TOLD, RESPONSES with READ, sooner or
# later.
LOG, ANSWER, AREA, CANCELLED, RESPONSES = 33, 34, 35, 36, 37
# Kinds of messages to the worker, on the calls socket. TOLD is followed by one byte, 1 for yes.
TOLD, READ = 49, 50

# Kinds of messages to the server, on the asks socket. CALLS are requests to other models; QUIT is followed by a call's
# number, TAKEN by that and the bytes of its responses that the model has taken; QUESTION is answered with REPLY.
CALLS, QUIT, TAKEN, QUESTION, METRIC = 65, 66, 67, 68, 69
# Kinds of messages to the worker, on the asks socket: responses of other models, and what a question's answer is.
RESULTS, REPLY = 81, 82

# Flags of EXECUTE and DONE.
#: The meta lies at the start of the area, not in the packet.
META_IN_AREA = 1
#: The data lie in the area (behind the meta, if that is there too, at the next multiple of ALIGN).
DATA_IN_AREA = 2
#: EXECUTE: all requests have form `number`, data lie input by input. DONE: all responses have layout `number`, data lie
#: output by output. Without it, data lie request by request and the meta says what they are.
UNIFORM = 4
#: EXECUTE: the server's log shows verbose messages.
VERBOSE = 8
#: DONE: the model still holds arrays that lie in the input area; a fresh one was sent on the calls socket.
KEPT = 16
#: EXECUTE: the bits from this one on are the number of the area in which the answer is wanted, if in any.
OUTPUTS_SHIFT = 5
#: EXECUTE: the next batch may come at once, it is not worth going to sleep. (The bits above the area's number.)
AWAKE = 128
#: So many areas there are for answers.
OUTPUTS = 3

#: kind, flags, sequence of the batch, requests, form number, bytes of meta, bytes of data.
EXECUTE_HEAD = struct.Struct("<BBxxIIIQQ")
#: kind, flags, sequence, responses, layout number, bytes of meta, bytes of data; monotonic ns: inputs ready, run over.
DONE_HEAD = struct.Struct("<BBxxIIIQQqq")
#: kind, flags, sequence of the batch, index in the batch, bytes of meta, bytes of data (ANSWER and CANCELLED).
CALL_HEAD = struct.Struct("<BBxxIIIQ")

#: kind, RESPONSES packets read; then for each request whose responses were taken its key and their bytes.
READ_HEAD = struct.Struct("<BxxxI")
READ_ENTRY = struct.Struct("<QQ")

#: What every message of the asks socket begins with: kind, flags, number of a call, question or metric.
ASK_HEAD = struct.Struct("<BBxxI")
#: Flag of CALLS, RESULTS and QUESTION: contents lie in a file that comes with the packet.
IN_FILE = 1
#: Flag of QUIT: nobody wants the responses, but the call goes on; without it, the call is cancelled.
FORGET = 1
#: In CALLS, for each call: its number, its form's number, sequence of the batch that makes it (0: unknown), bytes of
#: meta, bytes of data.
CALL_ENTRY = struct.Struct("<IIIIQ")
#: In RESULTS, for each response: number of the call, flags, bytes of meta, bytes of data.
RESULT_ENTRY = struct.Struct("<IIIQ")
#: Flag of a response: it is the last one.
LAST = 1
#: Follows ASK_HEAD in METRIC (whose flags say what to do) and in TAKEN.
METRIC_VALUE = struct.Struct("<d")
TAKEN_BYTES = struct.Struct("<Q")
#: Flags of METRIC: to its number, the value is added, set or observed; or it or the family of this number goes.
INCREMENT, SET, OBSERVE, DROP_FAMILY = 1, 2, 3, 4
#: So many kinds of calls (`forms`) a worker numbers; the oldest is forgotten for a new one.
CALL_FORMS = 256

#: So many bytes of a request's responses may be under way; its sender waits beyond that.
WINDOW = 4 << 20
#: What a response counts for on top of its contents.
RESPONSE_COST = 256

Readable = Union[bytes, bytearray, memoryview]  # noqa: UP007  workers run on Python 3.9 too


def key_of(sequence: int, index: int) -> int:
    """What the two sides call the request at `index` of batch `sequence` of a decoupled model."""
    return sequence << 32 | index


#: The kernel has no memory for a packet, or too many files are on their way: soon it may be otherwise.
BUSY = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
_MOMENT = 0.002


def send(sock: socket.socket, packet: Readable, descriptor: int = -1) -> None:
    """Send a packet, and a file with it; for sockets that block. Raises OSError when the other side is gone."""
    while True:
        try:
            if descriptor < 0:
                sock.send(packet)
            else:
                socket.send_fds(sock, [packet], [descriptor])
        except OSError as error:
            if error.errno not in BUSY:
                raise
        else:
            return
        time.sleep(_MOMENT)


def shortened(text: str, room: int = INLINE) -> str:
    """`text`, or as much of its beginning as takes no more than `room` bytes in JSON."""
    if len(text) * 12 <= room or len(json.dumps(text)) <= room:
        return text
    kept = room
    while True:
        kept //= 2
        shown = f"{text[:kept]} ... ({len(text)} characters in all)"
        if len(json.dumps(shown)) <= room:
            return shown


def sealed(descriptor: int) -> bool:
    """Whether a file that came in a packet can be mapped safely: it cannot shrink. Raises OSError, also where it never
    came (-1): the kernel had no number left for it."""
    if descriptor < 0:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK != 0


def aligned(position: int) -> int:
    """The first place from `position` on where a tensor may begin."""
    return (position + ALIGN - 1) & -ALIGN


class Area:
    """Memory shared by two processes, an anonymous file that vanishes with its last descriptor or mapping.

    It grows and never shrinks. The side that writes calls `reserve`, the other sees the growth in `view`. Arrays over
    an earlier mapping stay valid: a mapping lives as long as anything refers to it.
    """

    __slots__ = ("_growth", "_size", "_view", "descriptor")

    def __init__(self, descriptor: int, growth: int) -> None:
        self.descriptor = descriptor
        self._growth = growth
        self._size = os.fstat(descriptor).st_size
        self._view = self._map(self._size)

    @classmethod
    def make(cls, size: int, growth: int) -> Area:
        descriptor = os.memfd_create("conch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size)
            # Whoever looks at memory that the other has cut off is ended.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            return cls(descriptor, growth)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def received(cls, descriptor: int, growth: int) -> Area:
        """Over a file that the other side has made. Raises OSError where it did not arrive, might shrink or cannot be
        mapped; then it is closed."""
        try:
            if not sealed(descriptor):
                raise OSError(errno.EINVAL, "its file is not sealed")  # noqa: TRY301
            return cls(descriptor, growth)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise

    def reserve(self, size: int) -> memoryview:
        """A writable view of at least `size` bytes; the file grows where it is smaller. Raises OSError."""
        if size > self._size:
            wanted = max(size, min(2 * self._size, self._size + (1 << 28)))
            wanted = -(-wanted // self._growth) * self._growth
            # Claims the pages now: memory that runs out is an OSError here and would be a SIGBUS later.
            os.posix_fallocate(self.descriptor, 0, wanted)
            self._size = wanted
            self._view = self._map(wanted)
        return self._view

    def view(self, size: int) -> memoryview:
        """At least the first `size` bytes, which the other side has written."""
        if size > self._size:
            self._size = os.fstat(self.descriptor).st_size
            self._view = self._map(self._size)
        return self._view

    def close(self) -> None:
        """Gives up the descriptor; what still refers to the memory keeps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._view = memoryview(b"")
            self._size = 0

    def _map(self, size: int) -> memoryview:
        return memoryview(mmap.mmap(self.descriptor, size))
