"""Who waits for answers: one answer as a future, many as a queue. Both are `types.request.ResponseSink`s."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from conch.library.answer import Answer, read
from conch.types.error import InferError, foreign
from conch.types.flow import Flow
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse

#: Responses that may wait for a reader before the model is asked to pause.
_FULL: Final = 64


class Pending(Future[Answer]):
    """Whoever cancels it withdraws the request, if `withdraw` is set."""

    withdraw: Callable[[], object] | None = None

    def cancel(self) -> bool:
        cancelled = super().cancel()
        withdraw, self.withdraw = self.withdraw, None
        if cancelled and withdraw is not None:
            withdraw()
        return cancelled


class One:
    """The single answer of a model that is not decoupled."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future = Pending()

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        # It refers to the request, which refers to this sink.
        self.future.withdraw = None
        # Who gave up waiting has cancelled the future.
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(read(request, response))
            except Exception as error:  # noqa: BLE001  a sink never raises
                self.future.set_exception(error)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self.future.withdraw = None
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Many:
    """All answers of a request in order. `post` runs a call on the server's loop."""

    __slots__ = ("_answers", "_changed", "_left", "_listener", "_post", "ended", "flow")

    def __init__(self, post: Callable[[Callable[[], object]], object]) -> None:
        self._post = post
        self._answers: deque[Answer | InferError] = deque()
        self._changed = threading.Condition()
        #: Called, from any thread, whenever there is something new.
        self._listener: Callable[[], object] | None = None
        self._left = False
        self.ended = False
        self.flow = Flow()

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        found: Answer | InferError | None = None
        if isinstance(response, FailedResponse):
            found = response.error
        elif response is not FINAL:
            try:
                found = read(request, response)
            except Exception as error:  # noqa: BLE001  a sink never raises
                found = foreign(error)
        self._put(found, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        self._put(error, True)

    def listen(self, listener: Callable[[], object]) -> None:
        with self._changed:
            self._listener = listener
        listener()

    def take(self) -> Answer | InferError | None:
        """The next one; None where there is none now."""
        with self._changed:
            found = self._answers.popleft() if self._answers else None
            free = self.flow.full and len(self._answers) <= _FULL // 2
        if free:
            self._post(self.flow.release)
        return found

    def wait(self, seconds: float | None) -> Answer | InferError | None:
        """The next one; None at the end, and when nobody reads any more. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._answers) or self.ended or self._left, seconds):
                raise TimeoutError
            return None if self._left else self.take()

    def leave(self) -> None:
        """Nobody reads any more: what still comes is thrown away. Waits for nothing, as finalizers must not."""
        self._left = True
        self._answers.clear()
        self._post(self.flow.release)

    def wake(self) -> None:
        """Who waits looks again."""
        with self._changed:
            self._changed.notify_all()

    def _put(self, answer: Answer | InferError | None, final: bool) -> None:
        with self._changed:
            if answer is not None and not self._left:
                self._answers.append(answer)
            self.ended = self.ended or final
            # The flow belongs to the loop; but a maker in another thread is to see at once that it is too fast, and
            # whoever reads what fills it lets it go on the loop.
            self.flow.full = self.flow.full or len(self._answers) >= _FULL
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()
