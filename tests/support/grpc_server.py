"""A gRPC server with echo models, on a thread of its own or as a program: `python grpc_server.py [mode]`."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conch.config.server import GrpcOptions
from conch.transport.grpc import GrpcTransport
from support.plane import RecordingControl, echo_plane


class GrpcServer:
    """A context manager; `port`, `registry` and `control` belong to the running server, `call` runs on its loop."""

    def __init__(self, mode: str = "inline", **options: object) -> None:
        self.data, self.registry = echo_plane(mode)
        self.control = RecordingControl()
        self._options = GrpcOptions(address="127.0.0.1", port=0, **options)  # type: ignore[arg-type]
        self.transport = GrpcTransport(self._options, self.data, self.control)
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()

    @property
    def port(self) -> int:
        return self.transport.port

    @property
    def scheduler(self) -> object:
        return self.registry.versions["identity"].scheduler

    def call(self, function: object, *args: object) -> object:
        async def run() -> object:
            return function(*args)  # type: ignore[operator]

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(60)

    def _run(self) -> None:
        async def main() -> None:
            await self.transport.start()
            self._started.set()
            await self._stop.wait()
            await self.transport.close()

        self.loop.run_until_complete(main())
        self.loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(60):
            raise AssertionError("the server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        for version in self.registry.versions.values():
            version.scheduler.stop()


if __name__ == "__main__":
    with GrpcServer(sys.argv[1] if len(sys.argv) > 1 else "inline") as server:
        for version in server.registry.versions.values():
            version.scheduler.stats = version.stats
        print(server.port, flush=True)
        threading.Event().wait()
