"""One HTTP/1.1 connection: requests out of bytes, one at a time and in order, and answers back into bytes."""

from __future__ import annotations

import asyncio
import http
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

from conch.protocol.v2.status import error_body
from conch.transport.bodies import Body, SizedBody, body_of
from conch.transport.filler import LARGE, Filler
from conch.transport.heads import MAX_HEAD, BadRequestError, Head, HeadCache
from conch.transport.uptake import still_owed, taken, untaken
from conch.types.flow import Flow
from conch.types.tensor import Buffer

#: Bytes of further requests that may wait while one is being answered; then the socket is not read.
MAX_WAITING: Final = 262_144
#: Larger bodies of answers are sent from where they lie.
_MAX_JOIN: Final = 65536
#: Pieces of answers (two or three each) that are collected before they are written and other connections have a turn.
_MAX_PIECES: Final = 64
#: How long a client whose request was refused may go on sending before the connection is cut.
_LINGER: Final = 2.0

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_END: Final = b"\r\n"
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
_LAST_CHUNK: Final = b"0\r\n\r\n"
#: How the answer under way is sent.
_WHOLE, _CHUNKS, _TO_THE_END = range(3)
_CLOSE: Final = b"Connection: close\r\n\r\n"
_KEEP_ALIVE: Final = b"Connection: keep-alive\r\n\r\n"
_REASONS: Final = {status.value: status.phrase for status in http.HTTPStatus} | {405: "Not Allowed"}

now = time.monotonic


def status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS[status]}\r\n".encode()


def head_of(status: int, content_type: str, length: int) -> bytes:
    """An answer's head without its closing empty line."""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n".encode()
    )


class Owner(Protocol):
    """What a connection belongs to."""

    #: Parsed heads, shared by all connections.
    heads: HeadCache
    #: Set while the server stops: no connection serves another request then.
    draining: bool
    #: Has a call made once, when other connections have had their turn.
    soon: Callable[[Callable[[], object]], object]

    def handle(self, connection: Connection, head: Head, body: Buffer, /) -> None:
        """Answer a request: call `connection.respond` once, now or later. Must not raise. `body` may be kept."""

    def opened(self, connection: Connection, /) -> None: ...

    def lost(self, connection: Connection, /) -> None:
        """The client has left; what it waits for, if anything, needs no answer."""


class Connection(asyncio.Protocol):
    """All calls on the event loop's thread."""

    __slots__ = (
        "_at", "_body", "_buffer", "_closed", "_deferred", "_filler", "_flow", "_head", "_last", "_lingering", "_out",
        "_owed", "_owner", "_paused", "_quiet_since", "_searched", "_stepping", "_streaming", "_taken", "_transport",
        "_write_blocked", "busy", "exchange",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport
        #: Bytes received and not yet understood.
        self._buffer = b""
        #: Where in `_buffer` the next request begins; 0 except while requests are taken out.
        self._at = 0
        #: How many bytes from there on are known to hold no end of a head.
        self._searched = 0
        #: The request that is being received or answered.
        self._head: Head | None = None
        self._body: Body | None = None
        #: Takes the socket's bytes while the rest of a large body comes.
        self._filler: Filler | None = None
        self._out: list[Buffer] = []
        self._stepping = False
        #: Requests that have arrived wait for the turns of other connections.
        self._deferred = False
        #: What is being answered in pieces: nothing, chunks, or bytes that end with the connection.
        self._streaming = _WHOLE
        self._flow: Flow | None = None
        self._paused = False
        self._write_blocked = False
        #: How much the client had taken when it was last looked at, once it does not keep up.
        self._taken = 0
        #: Whether a client of TLS had bytes to take when `owed` was last asked.
        self._owed = False
        #: Since when the client owes us bytes, 0 when it does not. Monotonic seconds.
        self._quiet_since = 0.0
        #: No further request is served; the connection closes when everything is written.
        self._last = False
        #: After a refusal: what the client still sends is thrown away, until it has read the answer.
        self._lingering = False
        self._closed = False
        #: Whether a request has been handed over and not been answered yet.
        self.busy = False
        #: For the owner: what belongs to this connection's requests.
        self.exchange: Any = None

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._buffer = b""
        self._body = None
        self._filler = None
        self._out.clear()
        self._streaming = _WHOLE
        self._flow = None
        self._owner.lost(self)
        self._head = None
        self.exchange = None

    def eof_received(self) -> bool:
        """The client sends no more: as with Triton, it has then left, and what it waits for is cancelled."""
        return False

    def pause_writing(self) -> None:
        """The client does not read what we write: we do not read what it asks."""
        self._write_blocked = True
        self._quiet_since = now()
        self._taken = taken(self._transport)
        if self._flow is not None:
            self._flow.full = True
        self._pause()

    def resume_writing(self) -> None:
        self._write_blocked = False
        self._quiet_since = now() if self._lingering or self._body is not None else 0.0
        if self._flow is not None:
            self._flow.release()
        if self._last and not self.busy and not self._lingering:
            self._finish()
            return
        if not self.busy or len(self._buffer) <= MAX_WAITING:
            self._resume()
        if not self.busy and self._buffer:
            self._step()

    def data_received(self, data: bytes) -> None:
        if self._last or self._closed:
            return
        self._buffer = self._buffer + data if self._buffer else data
        if not (self.busy or self._write_blocked or self._deferred):
            self._step()
        elif len(self._buffer) > MAX_WAITING:
            self._pause()

    # ---- answers

    def respond(
        self, head: bytes, body: Sequence[Buffer] = (), collect: Callable[[Connection], object] | None = None
    ) -> None:
        """Answer the request that was handed over last. `head` is without its closing empty line.

        With `collect` the answer is not written yet: that is given the connection, to call `flush` in this tick.
        """
        if not self.busy or self._closed or self._streaming is not _WHOLE:
            return
        asked = self._head
        self.busy = False
        self._head = None
        out = self._out
        out.append(head)
        if asked is None or not asked.keep_alive or self._owner.draining:
            out.append(_CLOSE)
            self._last = True
        else:
            out.append(_KEEP_ALIVE if asked.say_keep_alive else _END)
        if asked is None or asked.method != "HEAD":
            out.extend(body)
        if self._stepping:
            return
        if collect is not None:
            collect(self)
        else:
            self._step()

    def begin(self, head: bytes, flow: Flow) -> None:
        """Begin an answer that comes in pieces. `head` has neither a length nor its closing empty line.

        `flow` hears how the client reads. HTTP/1.0 knows no chunks: there the answer ends with the connection.
        """
        asked = self._head
        if not self.busy or self._closed or asked is None:
            return
        self._flow = flow
        flow.full = self._write_blocked
        self._streaming = _CHUNKS if asked.modern else _TO_THE_END
        self._last = not (asked.modern and asked.keep_alive) or self._owner.draining
        coding = _CHUNKED if asked.modern else b""
        self._out.append(head + coding + (_CLOSE if self._last else _END))

    def send(self, piece: bytes) -> None:
        """One more piece of the answer, not empty. It is written by the next `flush`."""
        if self._streaming is _CHUNKS:
            self._out.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif self._streaming is _TO_THE_END:
            self._out.append(piece)

    def finish(self) -> None:
        """The answer that was begun is complete."""
        if self._streaming is _WHOLE or self._closed:
            return
        # Even an end without bytes is something to flush: the connection closes with it.
        self._out.append(_LAST_CHUNK if self._streaming is _CHUNKS else b"")
        self._streaming = _WHOLE
        self._flow = None
        self.busy = False
        self._head = None
        self._last = self._last or self._owner.draining
        if not self._stepping:
            self._step()

    def flush(self) -> None:
        """Write what has been collected, and go on with what has arrived."""
        if not self._stepping:
            self._step()

    @property
    def closed(self) -> bool:
        return self._closed

    def unread(self) -> int:
        """Bytes that were written and that the client has not taken yet."""
        return self._transport.get_write_buffer_size()

    def owed(self) -> bool:
        """Whether the client has not taken all that was written; to be asked again and again while the server stops."""
        owed, self._owed = still_owed(self._transport, self._owed)
        return owed

    def abort(self) -> None:
        """Cut the connection now; what was not written is lost, so that no client takes half an answer for a whole."""
        if not self._closed:
            self._out.clear()
            self._transport.abort()

    def fail(self, status: int, message: str, more: bytes = b"") -> None:
        """Answer with an error in Triton's form. `more` are further header lines."""
        body = error_body(message)
        self.respond(head_of(status, "application/json", len(body)) + more, (body,))

    def asked(self, header: str) -> str:
        """A header, by its lower-case name, of the request that was handed over last; empty when it is absent."""
        return self._head.headers.get(header, "") if self._head is not None else ""

    # ---- requests

    def _step(self) -> None:
        """Handle what has arrived, as far as it is complete and nobody is busy; then write what is to be written."""
        self._stepping = True
        try:
            while self._at < len(self._buffer) and not (self.busy or self._last or self._write_blocked):
                if self._out and self._is_much():
                    self._defer()
                    break
                if not (self._next() if self._body is None else self._fill(self._body)):
                    break
        except BadRequestError as error:
            self._refuse(error)
        finally:
            self._stepping = False
        if self._at:
            self._buffer = self._buffer[self._at :]
            self._at = 0
        if self._out:
            self._flush()
        if self._paused and not (self.busy or self._write_blocked or self._deferred):
            self._resume()

    def _is_much(self) -> bool:
        """Whether the answers collected go out before the next request is looked at.

        Requests are small, their answers may not be: a buffer full of them would fill the memory and hold up the loop.
        """
        return len(self._out) >= _MAX_PIECES or len(self._out[-1]) > _MAX_JOIN

    def _defer(self) -> None:
        if not self._deferred:
            self._deferred = True
            self._owner.soon(self._go_on)

    def _go_on(self) -> None:
        self._deferred = False
        self._step()

    def _next(self) -> bool:
        """Begin with the next request in the buffer. False when more bytes are needed."""
        buffer, at = self._buffer, self._at
        if buffer.startswith(_END, at):
            # RFC 9112 2.2: empty lines before a request are forgiven.
            run = _EMPTY_LINES.match(buffer, at)
            self._at = run.end() if run else at
            return True
        end = buffer.find(b"\r\n\r\n", at + max(self._searched - 3, 0))
        if end < 0:
            return self._await_head(buffer, at)
        if end - at > MAX_HEAD:
            raise BadRequestError(431, f"the request head is longer than {MAX_HEAD} bytes")
        self._searched = 0
        head = self._owner.heads.get(buffer[at:end])
        start = end + 4
        stop = start + head.length
        if head.simple and stop <= len(buffer):
            self._at = stop
            self._hand_over(head, buffer[start:stop])
            return True
        self._at = start
        if head.length == 0:
            self._hand_over(head, b"")
            return True
        self._head = head
        body = self._body = body_of(head.length, head.limit)
        if start < len(buffer):
            return self._fill(body)
        if head.awaits_continue:
            # Behind the answers to earlier requests.
            self._out.append(_CONTINUE)
        self._await_body(body)
        return False

    def _await_head(self, buffer: bytes, at: int) -> bool:
        seen = self._searched
        self._searched = len(buffer) - at
        if self._searched > MAX_HEAD:
            raise BadRequestError(431, f"the request head is longer than {MAX_HEAD} bytes")
        # Only the new bytes are looked at, and the one before them, so that sending byte by byte gains nothing.
        if buffer.count(b"\n", at + seen) != buffer.count(_END, at + max(seen - 1, 0)):
            raise BadRequestError(400, "malformed HTTP request: lines must end with CRLF")
        if not self._quiet_since:
            self._quiet_since = now()
        return False

    def _fill(self, body: Body) -> bool:
        """Give the body what has come of it. False when more bytes are needed."""
        self._at = body.feed(self._buffer, self._at)
        if not body.complete:
            self._await_body(body)
            return False
        self._body = None
        if self._head is not None:
            self._hand_over(self._head, body.take())
        return True

    def _await_body(self, body: Body) -> None:
        self._quiet_since = now()
        if isinstance(body, SizedBody) and body.missing >= LARGE:
            self._filler = Filler(self._transport, self, body.room, self._filled)

    def _filled(self, size: int) -> None:
        """So many bytes of the body have come to where they belong."""
        body, filler = self._body, self._filler
        if isinstance(body, SizedBody):
            self._quiet_since = now()
            body.filled(size)
            if not body.complete:
                return
        if filler is not None:
            self._filler = None
            filler.restore()
        self._body = None
        if isinstance(body, SizedBody) and self._head is not None:
            self._hand_over(self._head, body.take())

    def _hand_over(self, head: Head, body: Buffer) -> None:
        self._quiet_since = 0.0
        self._head = head
        self.busy = True
        self._owner.handle(self, head, body)

    def _refuse(self, error: BadRequestError) -> None:
        self._body = None
        self._head = None
        self._lingering = True
        self.busy = True
        self.fail(error.status, error.message)

    # ---- time and the end

    def tick(self, limit: float) -> None:
        """Called every few seconds: a client that owes us bytes, or reads none of ours, has `limit` seconds."""
        if not self._quiet_since:
            return
        waited = now() - self._quiet_since
        if self._closed:
            # Of TLS: the client has yet to say goodbye. While it reads, the kernel looks after it.
            if untaken(self._transport):
                self._quiet_since = now()
            elif waited > _LINGER:
                self._transport.abort()
        elif self._write_blocked:
            before, self._taken = self._taken, taken(self._transport)
            if self._taken > before:
                self._quiet_since = now()
            elif waited > limit:
                self._transport.abort()
        elif self._lingering:
            if waited > _LINGER:
                self._transport.abort()
        elif not self.busy and waited > limit:
            self._refuse(BadRequestError(408, f"the request was not complete after {limit:g} seconds without progress"))

    def stop(self) -> None:
        """The server stops: close now if nothing is under way, else after the answer."""
        if not (self.busy or self._buffer or self._body or self._out):
            self._last = True
            self._finish()

    def close(self) -> None:
        """Write what is to be written, then close."""
        if not self._closed:
            self._closed = True
            self._buffer = b""
            self._quiet_since = now()
            self._transport.close()

    def _finish(self) -> None:
        if self._closed:
            return
        if self._lingering:
            self._quiet_since = now()
            if self._transport.can_write_eof():
                # Closing a socket with unread bytes resets it, and the client may lose the answer (RFC 9112 9.6).
                if not self._transport.is_closing():
                    self._transport.write_eof()
                    self._resume()
                return
        if self.unread():
            # The socket is closed when the client has taken everything, or has had its time: closed now, a plain one
            # would wait for ever and one of TLS would soon be cut off within the answer.
            self._buffer = b""
            self._transport.set_write_buffer_limits(high=0)
            return
        self.close()

    # ---- the socket

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self._closed:
            if sum(map(len, out)) <= _MAX_JOIN:
                self._transport.write(b"".join(out))
            else:
                self._transport.writelines(out)
            if self._last and not self.busy:
                self._finish()

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
