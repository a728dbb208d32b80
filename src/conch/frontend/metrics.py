"""The metrics page over HTTP; its text is made elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from conch.config.server import MetricsOptions
from conch.observe.metrics import CONTENT_TYPE
from conch.transport.heads import BadRequestError, Head
from conch.transport.http1 import Connection, head_of
from conch.transport.listener import HttpFace, Listener
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

_EMPTY: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n"
_TIMEOUT: Final = 60.0
_MAX_BODY: Final = 65536


class MetricsTransport(HttpFace):
    """Implements `transport.api.Transport`. As with Triton, every path but `/metrics` is an empty page.

    `render` gives the page; it runs on the event loop's thread.
    """

    title = "Metrics Service"

    def __init__(self, options: MetricsOptions, render: Callable[[], bytes]) -> None:
        self._render = render
        self._listener = Listener(
            options.address, options.port, route=_route, handle=self._handle, lost=_lost, timeout=_TIMEOUT
        )

    def _handle(self, connection: Connection, head: Head, body: Buffer) -> None:
        if head.path.rstrip("/") != "/metrics":
            connection.respond(_EMPTY)
        elif head.method != "GET":
            connection.fail(405, "Method Not Allowed")
        else:
            try:
                page = self._render()
            except Exception:  # noqa: BLE001  a page that fails must not stop the server
                _log.exception("the metrics page could not be made")
                connection.fail(500, "the metrics page could not be made, see the server's log")
                return
            connection.respond(head_of(200, CONTENT_TYPE, len(page)), (page,))


def _route(head: Head) -> None:
    if head.length > _MAX_BODY:
        raise BadRequestError(413, f"the request body exceeds the limit of {_MAX_BODY} bytes")
    head.limit = _MAX_BODY


def _lost(connection: Connection) -> None:
    """Nothing waits for a page that is made at once."""
