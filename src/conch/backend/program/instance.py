"""Runs copies of programs: one in the thread of its runner, or on an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from conch.backend.api import Host
from conch.backend.program.api import AsyncCopy, Copy
from conch.backend.program.batch import Calls
from conch.observe.stats import ModelStats
from conch.types.model import ModelSpec
from conch.types.request import InferRequest

_LOG = logging.getLogger("conch.backend")


class PlainInstance:
    """A `ThreadInstance`."""

    def __init__(self, copy: Copy, spec: ModelSpec, stats: ModelStats, host: Host) -> None:
        self._copy = copy
        self._post = host.loop.call_soon_threadsafe
        self._spec = spec
        self._stats = stats

    def run(self, batch: Sequence[InferRequest]) -> None:
        work = Calls(self._spec, batch, self._stats, self._post)
        if not work.calls:
            return
        try:
            self._copy.run(work.calls)
        except BaseException as error:  # noqa: BLE001  a user's code; SystemExit too must not end the thread
            work.ended(error)
        else:
            work.ended()

    def close(self) -> None:
        self._copy.close()


class AsyncInstance:
    """A `StreamingInstance`: it takes batches as long as fewer than the copy's `concurrency` are being answered."""

    def __init__(self, copy: AsyncCopy, spec: ModelSpec, stats: ModelStats, host: Host, name: str) -> None:
        self._copy = copy
        self._spec = spec
        self._stats = stats
        self._post = host.loop.call_soon_threadsafe
        self._home = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        #: What follows belongs to the server's loop. Batches and requests that are being answered.
        self._batches = 0
        self._requests = 0
        self._idle: Callable[[], None] | None = None
        #: Requests of the batch that the runner waits for; it counts them itself.
        self._waited_for = 0
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        work = Calls(self._spec, batch, self._stats, self._post)
        if not work.calls:
            idle()
            return
        self._batches += 1
        self._requests += len(work.calls)
        self._home.call_soon_threadsafe(self._begin, work)
        if self._batches < self._copy.concurrency:
            idle()
        else:
            self._idle, self._waited_for = idle, len(work.calls)

    def open(self) -> int:
        return self._requests - self._waited_for

    def close(self) -> None:
        self._home.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._copy.close()

    def _stop(self) -> None:
        self._closing = True
        self._home.stop()

    def _live(self) -> None:
        asyncio.set_event_loop(self._home)
        try:
            while not self._closing:
                self._turn()
        finally:
            for task in self._tasks:
                task.cancel()
            with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):
                self._home.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
                self._home.run_until_complete(self._home.shutdown_asyncgens())
            self._home.close()

    def _turn(self) -> None:
        try:
            self._home.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            # They end an event loop, whichever task raises them; whoever awaits that task gets them too.
            _LOG.error("model '%s' raised %r, it is served on", self._spec.name, error)

    def _begin(self, work: Calls) -> None:
        task = self._home.create_task(self._answer(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, work: Calls) -> None:
        try:
            await self._copy.answer(work.calls)
        except BaseException as error:  # noqa: BLE001  a user's code; nobody may be left without an answer
            work.ended(error)
        else:
            work.ended()
        with contextlib.suppress(RuntimeError):
            # The server's loop may be closed already.
            self._post(self._ended, len(work.calls))

    def _ended(self, requests: int) -> None:
        self._batches -= 1
        self._requests -= requests
        idle, self._idle = self._idle, None
        if idle is not None:
            self._waited_for = 0
            idle()
