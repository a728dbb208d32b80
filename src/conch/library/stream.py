"""The answers to one request as they come: for threads, and for event loops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Self

from conch.library.answer import Answer
from conch.library.home import Home
from conch.library.waiting import Many
from conch.types.error import InferError
from conch.types.request import InferRequest


class _Ending:
    """No generators: those withdraw nothing when they are thrown away before they have begun."""

    def __init__(self, home: Home, request: InferRequest, sink: Many) -> None:
        self._home = home
        self._request = request
        self._sink = sink
        self._closed = False

    @property
    def decoupled(self) -> bool:
        """Whether the model may answer any number of times."""
        return self._request.form.decoupled

    def _leave(self) -> None:
        """Nobody reads on; what is not answered yet is withdrawn. Any thread, and any number of times."""
        if self._closed:
            return
        self._closed = True
        if not self._sink.ended:
            self._home.withdraw(self._request)
        self._sink.leave()

    def __del__(self) -> None:
        self._leave()


class Stream(_Ending, Iterator[Answer]):
    """`timeout` is for each answer. It ends with the last one, with an error, by `close`, or when it is forgotten."""

    def __init__(self, home: Home, request: InferRequest, sink: Many, timeout: float | None) -> None:
        super().__init__(home, request, sink)
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer:
        if self._closed:
            raise StopIteration
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def _next(self) -> Answer:
        self._home.check_waiting()
        try:
            found = self._sink.wait(self._timeout)
        except TimeoutError:
            name = self._request.form.model.spec.name
            raise TimeoutError(f"model '{name}' did not answer within {self._timeout:g} seconds") from None
        if found is None:
            raise StopIteration
        if isinstance(found, InferError):
            raise found
        return found

    def close(self) -> None:
        """Withdraw the request; who waits for an answer in another thread waits no longer."""
        self._leave()
        self._sink.wake()


class AsyncStream(_Ending, AsyncIterator[Answer]):
    """As `Stream`, for the event loop that reads it: one after another may."""

    def __init__(self, home: Home, request: InferRequest, sink: Many) -> None:
        super().__init__(home, request, sink)
        self._changed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __anext__(self) -> Answer:
        if self._closed:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException:
            self._leave()
            raise

    async def _next(self) -> Answer:
        self._home.check()
        loop = asyncio.get_running_loop()
        changed = self._changed if self._loop is loop and self._changed is not None else self._listen(loop)
        while not self._closed:
            changed.clear()
            ended = self._sink.ended
            found = self._sink.take()
            if isinstance(found, InferError):
                raise found
            if found is not None:
                return found
            if ended:
                break
            await changed.wait()
        raise StopAsyncIteration

    def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Event:
        changed = asyncio.Event()

        def tell() -> None:
            # The program's loop may be over before its request is.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        self._sink.listen(tell)
        self._loop, self._changed = loop, changed
        return changed

    async def aclose(self) -> None:
        """Withdraw the request."""
        self._leave()
        if self._changed is not None:
            self._changed.set()
