"""One thread that does what it is told, in the order in which it was said, and looks after things in between."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from conch.types.error import foreign

_log = logging.getLogger("conch.registry")

Word = Callable[[], object]


class Desk:
    """The thread begins with the first word. Any thread may call."""

    def __init__(self, name: str, pause: Callable[[], float], look: Word, trouble: str) -> None:
        """`look` is called after what was said, and else after `pause` seconds. `trouble` is what the log says when a
        word or a look fails."""
        self._name = name
        self._pause = pause
        self._look = look
        self._trouble = trouble
        self._words: queue.SimpleQueue[Word] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = False
        #: Nobody listens any more.
        self._deaf = False

    def say(self, word: Word) -> None:
        with self._lock:
            if not self._deaf:
                self._words.put(word)
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    thread.start()
                    # Only now: what has not begun is tried again by the next word.
                    self._thread = thread
                return
        # Whoever waits for what becomes of it is to hear it.
        self._heed(word)

    def ask(self, word: Word, future: Future[Any]) -> None:
        """As `say`. The word settles the future; when it fails, that does."""

        def asked() -> None:
            try:
                word()
            except Exception as raised:
                if not future.done():
                    future.set_exception(foreign(raised))
                raise

        self.say(asked)

    def close(self) -> None:
        """What was said is still done, and what is said from now on; without looking after anything."""
        with self._lock:
            self._ended = True
            self._deaf |= self._thread is None
        # Wakes the thread up.
        self.say(lambda: None)

    def _run(self) -> None:
        while not self._ended:
            with contextlib.suppress(queue.Empty):
                self._heed(self._words.get(timeout=self._pause()))
                while True:
                    self._heed(self._words.get_nowait())
            if not self._ended:
                self._heed(self._look)
        while True:
            with self._lock:
                if self._words.empty():
                    self._deaf = True
                    return
            self._heed(self._words.get())

    def _heed(self, word: Word) -> None:
        try:
            word()
        except Exception:  # noqa: BLE001
            # The thread must go on, whatever happens: others wait.
            _log.exception("%s", self._trouble)
