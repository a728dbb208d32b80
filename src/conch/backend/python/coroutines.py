"""The event loop of a model whose `execute` is a coroutine."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from conch.backend.python.bls import current_batch
from conch.backend.python.errors import words
from conch.backend.python.stream import Stream


class _Receiver(Protocol):
    def deliver(self, result: Any, streams: Sequence[Stream]) -> str: ...
    def fail(self, text: str, streams: Sequence[Stream]) -> None: ...


class Coroutines:
    """All coroutines of one instance share a loop.

    It runs in the main thread while that waits for a batch (`finish`), and in a thread of its own as soon as something
    is to go on meanwhile: further batches (`start`), or tasks that the model has left behind.
    """

    def __init__(self, limit: int) -> None:
        """So many batches run side by side at most; 0: no limit."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threaded = False
        self._free = threading.Semaphore(limit) if limit else None

    def finish(self, awaitable: Any) -> Any:
        """Its result; blocks."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        if self._threaded:
            return asyncio.run_coroutine_threadsafe(_awaited(awaitable), loop).result()
        try:
            return loop.run_until_complete(awaitable)
        finally:
            if asyncio.all_tasks(loop):
                self._in_background()

    def start(self, awaitable: Any, streams: Sequence[Stream], receiver: _Receiver) -> None:
        """It goes on while other batches come. Returns when one more may come."""
        if not self._threaded:
            self._in_background()
        assert self._loop is not None
        free = self._free
        if free is not None:
            # One is free: who was here before has waited for it.
            free.acquire()

        async def run() -> None:
            current_batch.set(streams[0].sequence)
            try:
                text = receiver.deliver(await awaitable, streams)
            except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001  whatever the model raises
                text = words(error)
            finally:
                if free is not None:
                    free.release()
            if text:
                receiver.fail(text, streams)

        asyncio.run_coroutine_threadsafe(run(), self._loop)
        if free is not None:
            free.acquire()
            free.release()

    def _in_background(self) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        self._threaded = True
        threading.Thread(target=_run, args=(self._loop,), name="async execute", daemon=True).start()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """For ever: batches wait for this loop."""
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # They end an event loop, whichever task raises them; whoever awaits that task gets them too.
            traceback.print_exc()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
