"""The thread that a server lives in: an event loop of its own, beside whatever loop the program has."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from conch.types.error import unavailable
from conch.types.request import InferRequest

_Result = TypeVar("_Result")


class Home:
    def __init__(self, name: str, needs: object) -> None:
        """`needs` lives as long as the thread does, also when the program has forgotten the server."""
        self._needs = needs
        self.loop = uvloop.new_event_loop()
        #: False in a process that was forked from the server's: threads stay behind.
        self.here = True
        self._clean = True
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()
        left = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _left_behind(left()))

    def check(self) -> None:
        """Raises InferError where there is no such thread."""
        if not self.here:
            raise unavailable(
                "the server does not run in this process, which was forked from the server's", "start one in each"
            )

    def check_waiting(self) -> None:
        """As `check`; and RuntimeError for the loop's own thread, which would wait for itself for ever."""
        self.check()
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "this runs in the server's own thread (callbacks of futures may), which must not wait for the server: "
                "do it in another thread"
            )

    def begin(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Blocks. Raises what `check_waiting` does."""
        self.check_waiting()
        return self.begin(work()).result()

    def ask(self, call: Callable[[], _Result]) -> _Result:
        """What `call` gives when it runs on the loop's thread; blocks. Raises what `check_waiting` does."""

        async def answer() -> _Result:
            return call()

        return self.run(answer)

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
        self.leave(clean=clean)
        self._thread.join()

    def leave(self, *, clean: bool) -> None:
        """As `end`, and nobody waits for it."""
        self._clean = clean
        self.post(self.loop.stop)

    def _live(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            if self._clean:
                self.loop.run_until_complete(self.loop.shutdown_default_executor())
                self.loop.close()


def _left_behind(home: Home | None) -> None:
    if home is not None:
        home.here = False
