"""What drives an instance: a thread of its own, or the event loop."""

from __future__ import annotations

import _thread
import logging
import threading
from collections.abc import Callable
from typing import Final

from conch.backend.api import LoopInstance, StreamingInstance, ThreadInstance
from conch.schedule.queue import Post, Runner
from conch.types.request import InferRequest

_LOG: Final = logging.getLogger("conch")

Take = Callable[[Runner], list[InferRequest]]


class LoopRunner:
    """Drives an instance whose work happens elsewhere. Everything here is on the loop thread."""

    def __init__(self, instance: LoopInstance, take: Take, post: Post) -> None:
        self.running = 0
        self._instance = instance
        self._take = take
        self._post = post
        self._busy = False
        self._looping = False
        self._open = instance.open if isinstance(instance, StreamingInstance) else None

    def open(self) -> int:
        return 0 if self._open is None else self._open()

    def wake(self) -> None:
        """Start batches until the instance is busy or nothing waits; an instance may be done within `start`."""
        if self._looping:
            return
        self._looping = True
        try:
            while not self._busy:
                batch = self._take(self)
                if not batch:
                    return
                self._busy = True
                self._instance.start(batch, self._idle)
        finally:
            self._looping = False

    def close(self) -> None:
        """Nothing to end: no work is left when this is called."""

    def _after_next_look(self) -> None:
        self._post(self.wake)

    def _idle(self) -> None:
        self._busy = False
        self.running = 0
        if not self._looping:
            # Not now: the answers that were just given are written first, and the sockets looked at once more. What
            # has arrived meanwhile joins the batch; nobody waits longer for it, as the loop would have been busy.
            self._post(self._after_next_look)


class ThreadRunner:
    """Gives an instance a thread, which sleeps while the runner is idle."""

    def __init__(self, instance: ThreadInstance, take: Take, name: str) -> None:
        self.running = 0
        self._instance = instance
        self._take = take
        self._closing = False
        #: Held while there is nothing to do; `wake` lets it go, once per idling.
        self._asleep = _thread.allocate_lock()
        self._asleep.acquire()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def open(self) -> int:
        """An instance with a thread has answered all it has run."""
        return 0

    def wake(self) -> None:
        self._asleep.release()

    def close(self) -> None:
        self._closing = True
        if self._asleep.locked():
            self._asleep.release()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._asleep.acquire()
            # Without another look: who finds nothing is listed as idle, and would be woken when it is gone.
            if self._closing:
                return
            while batch := self._take(self):
                try:
                    self._instance.run(batch)
                except BaseException:  # noqa: BLE001  it must not raise
                    # Who of the batch has an answer is not known. Other requests go on.
                    _LOG.exception("an instance failed outside its model, requests may be without an answer")
                self.running = 0
