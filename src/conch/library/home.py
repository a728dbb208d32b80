"""The thread that a server lives in: an event loop of its own, beside whatever loop the program has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from conch.types.request import InferRequest

_Result = TypeVar("_Result")


class Home:
    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._clean = True
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Blocks. Not for the loop's own thread."""
        return self.begin(work).result()

    def ask(self, call: Callable[[], _Result]) -> _Result:
        """What `call` gives when it runs on the loop's thread; blocks."""

        async def answer() -> _Result:
            return call()

        return self.run(answer())

    def post(self, call: Callable[[], object]) -> None:
        """Have `call` run on the loop, soon; nothing happens when the loop has ended."""
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:
            return

    def withdraw(self, request: InferRequest) -> None:
        """Any thread. From here on it is not taken for execution, though it leaves its queue a little later."""
        request.cancelled = True
        self.post(lambda: request.form.withdraw(request))

    def end(self, *, clean: bool) -> None:
        """With `clean`, threads that work for the loop are waited for."""
        self._clean = clean
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            if self._clean:
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
                self.loop.close()
