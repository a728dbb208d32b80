"""Work that would hold up the event loop: done in threads, a slice at a time, in turns of those it is done for."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Generic, Protocol, TypeVar

from conch.transport.bridge import Bridge

_log = logging.getLogger("conch")

T = TypeVar("T")
J = TypeVar("J", bound="Job")

#: More threads than this would take the models' processors.
_THREADS: Final = 2
#: Bytes of one step, and seconds after which a thread looks who is next.
_STEP: Final = 1 << 16
_SLICE: Final = 0.02


class Job(Protocol):
    """What is done in steps, by one thread at a time."""

    @property
    def given_up(self) -> bool:
        """Nobody waits for it any more. Any thread."""

    def step(self, most: int) -> bool:
        """Do about `most` bytes more. True when nothing is left to do, for whatever reason."""

    def fail(self, error: Exception) -> None:
        """A step has raised `error`; there will be no other."""


class Turns(Generic[T]):
    """Who is next: the items of each owner in their order, the owners one after the other. Pure."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: OrderedDict[object, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def join(self, owner: object, item: T) -> None:
        self._lines.setdefault(owner, deque()).append(item)

    def next(self) -> T | None:
        """The next item, which leaves; its owner goes to the end of the line."""
        if not self._lines:
            return None
        owner, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[owner] = line
        return item

    def clear(self) -> None:
        self._lines.clear()


class _Task:
    """A job, whose it is and who hears of its end."""

    __slots__ = ("done", "job", "owner", "then")

    def __init__(self, owner: object, job: Job, then: Callable[[], object]) -> None:
        self.owner = owner
        self.job = job
        self.then = then
        self.done = False


class Aside:
    """One per transport. Call it on the event loop's thread.

    Little of what waits is under way: an owner with a hundred jobs holds up another by one slice.
    """

    __slots__ = ("_bridge", "_busy", "_closed", "_threads", "_turns")

    def __init__(self, bridge: Bridge, name: str) -> None:
        self._bridge = bridge
        self._threads = ThreadPoolExecutor(_THREADS, name)
        self._turns: Turns[_Task] = Turns()
        self._busy = 0
        self._closed = False

    def run(self, owner: object, job: J, then: Callable[[J], object]) -> None:
        """Have `then(job)` called on the loop's thread when the job is done or given up; never after `close`."""
        self._turns.join(owner, _Task(owner, job, lambda: then(job)))
        self._start()

    def close(self) -> None:
        self._closed = True
        self._turns.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._busy < _THREADS and not self._closed and (task := self._turns.next()) is not None:
            self._busy += 1
            self._threads.submit(self._work, task)

    def _work(self, task: _Task) -> None:
        """One slice; in a thread."""
        job, stop = task.job, time.monotonic() + _SLICE
        try:
            while not (task.done or time.monotonic() > stop):
                task.done = job.given_up or job.step(_STEP)
        except Exception as error:  # noqa: BLE001  the client must not be left waiting
            _log.exception("work beside the event loop failed")
            job.fail(error)
            task.done = True
        self._bridge.post(self._worked, task)

    def _worked(self, task: _Task) -> None:
        self._busy -= 1
        if self._closed:
            return
        if not task.done:
            self._turns.join(task.owner, task)
        self._start()
        if task.done:
            task.then()
