"""Compression, where it cannot hold up the event loop: little bodies at once, large ones in threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from conch.protocol.v2.coding import Inflater, coded_head, deflate
from conch.transport.bridge import Bridge
from conch.transport.http1 import Connection
from conch.types.error import InferError, internal
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

#: Uncompressed bytes that the loop's thread deals with itself: about a millisecond.
_AT_ONCE: Final = 1 << 16
_STEP: Final = 1 << 24
#: zlib works without the GIL; more threads than this would take the models' processors.
_THREADS: Final = 2

#: Gets the body, or the reason why there is none.
Inflated = Callable[[Buffer, InferError | None], object]


class Coder:
    """One per listener. Call it on the event loop's thread."""

    __slots__ = ("_bridge", "_threads")

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._threads = ThreadPoolExecutor(_THREADS, "http-coding")

    def inflate(self, coding: str, body: Buffer, limit: int, then: Inflated) -> None:
        """Have `then` called with the body uncompressed, now or later, on the loop's thread. Raises InferError."""
        inflater = Inflater(coding, body, limit)
        plain = inflater.step(_AT_ONCE)
        if plain is not None:
            then(plain, None)
        else:
            self._threads.submit(self._inflate, inflater, then)

    def _inflate(self, inflater: Inflater, then: Inflated) -> None:
        try:
            while (plain := inflater.step(_STEP)) is None:
                pass
            self._bridge.post(then, plain, None)
        except InferError as error:
            self._bridge.post(then, b"", error)
        except Exception as error:  # noqa: BLE001  the client must not be left waiting
            _log.exception("a request body could not be decompressed")
            self._bridge.post(then, b"", internal(f"the request body could not be decompressed: {error}"))

    def respond(self, connection: Connection, coding: str, head: bytes, body: Sequence[Buffer]) -> None:
        """As `Connection.respond`, compressed. The connection stays busy until then."""
        if sum(map(len, body)) <= _AT_ONCE:
            packed = deflate(coding, body)
            connection.respond(coded_head(head, coding, len(packed)), (packed,))
        else:
            self._threads.submit(self._respond, connection, coding, head, body)

    def _respond(self, connection: Connection, coding: str, head: bytes, body: Sequence[Buffer]) -> None:
        try:
            packed = deflate(coding, body)
            self._bridge.post(connection.respond, coded_head(head, coding, len(packed)), (packed,))
        except Exception:  # noqa: BLE001  the client must not be left waiting
            _log.exception("an answer could not be compressed")
            self._bridge.post(connection.fail, 500, "the response could not be compressed")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
