"""The HTTP transport over a fake plane, on a real socket and a loop thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import uvloop

from conch.config.server import HttpOptions
from conch.transport.api import Transport
from conch.transport.bridge import Bridge
from conch.transport.http import HttpTransport
from support.http_plane import Plane


class ServerThread:
    """`transport` runs until `close`; `run` has a coroutine run on its loop. `options` are the HTTP transport's."""

    def __init__(self, plane: Plane, transport: Transport | None = None, **options: Any) -> None:
        self.plane = plane
        self._options = HttpOptions(address="127.0.0.1", port=0, **options)
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.transport = transport or self.run(self._make())
        self.run(self.transport.start())

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.transport.port}"

    async def _make(self) -> Transport:
        return HttpTransport(self._options, self.plane, self.plane, Bridge(asyncio.get_running_loop()))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def call(self, function: Any, *args: Any) -> Any:
        async def inner() -> Any:
            return function(*args)

        return self.run(inner())

    def close(self) -> None:
        self.run(self.transport.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(60)
        self.loop.close()
