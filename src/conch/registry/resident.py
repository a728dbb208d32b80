"""A version that can be put to sleep, which frees what it takes, and woken; clients see it as one that is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, Protocol

from conch.backend.api import Housed, Placement
from conch.memory.thrift import THRIFT
from conch.memory.trim import trim
from conch.registry.loader import Outline
from conch.registry.served import ServedVersion
from conch.registry.sleeper import Sleeper
from conch.registry.tenant import Amounts, Tenant, larger, less, total
from conch.types.error import foreign, internal

#: How often to look whether the last request is answered, in seconds: soon at first.
_SHORTEST, _LONGEST = 0.001, 0.02
_NOTE: Final = "asleep: loads on demand"


class Gauge(Protocol):
    """What processes take (`observe.footprint.Gauge`)."""

    def server(self) -> Amounts: ...
    def families(self, heads: Sequence[int], /) -> dict[int, dict[str, int]]: ...
    def everything(self) -> Amounts: ...
    def whole(self) -> frozenset[str]: ...


class Open(Protocol):
    """Opens a version (`Loader.open`). Blocking; raises InferError."""

    def __call__(self, outline: Outline, release: Callable[[], None], /) -> ServedVersion: ...


class Resident:
    """Implements `backend.api.LoadedModel` for the version that clients see.

    `wake` and `doze` are called in turns and never at the same time; `close` at any time at which nothing is in flight.
    """

    def __init__(
        self, outline: Outline, tenant: Tenant, sleeper: Sleeper, open: Open, gauge: Gauge, gone: Callable[[], object]
    ) -> None:
        self.outline = outline
        self.tenant = tenant
        self.sleeper = sleeper
        #: How often it was loaded because somebody asked for it, and how long that took in all and the last time.
        self.cold_loads = 0
        self.cold_seconds = 0.0
        self._open = open
        self._gauge = gauge
        self._gone = gone
        self._moving = threading.Lock()
        self._inner: ServedVersion | None = None
        #: Why it could not be loaded the last time.
        self._trouble = ""
        self._closed = False
        #: What it took when it was loaded.
        self._first: Amounts = {}

    # ---- as a loaded model

    def instance(self, placement: Placement) -> NoReturn:
        raise internal("the instances of a model that can sleep are made when it is woken")

    def ready(self) -> bool:
        """One that sleeps answers as soon as it is asked, unless it could not be loaded a moment ago."""
        inner = self._inner
        return not self.sleeper.refusing() if inner is None else inner.ready()

    @property
    def note(self) -> str:
        """What the index says of it."""
        if self._inner is not None or self._closed:
            return ""
        return f"asleep: the last load failed: {self._trouble}" if self._trouble else _NOTE

    def close(self) -> None:
        """For good; waits for a load that is under way."""
        self._closed = True
        try:
            with self._moving:
                self._shut()
        finally:
            self._gone()

    # ---- sleeping and waking, blocking

    @property
    def inner(self) -> ServedVersion | None:
        """What runs it; None while it sleeps."""
        return self._inner

    @property
    def closed(self) -> bool:
        return self._closed

    def processes(self) -> Sequence[int]:
        inner = self._inner
        return inner.loaded.processes() if inner is not None and isinstance(inner.loaded, Housed) else ()

    def wake(self) -> Amounts | None:
        """Load it; what it takes then, None when it was closed meanwhile. Raises InferError."""
        with self._moving:
            if self._closed:
                return None
            try:
                before = self._gauge.server()
                self._inner = self._open(self.outline, _nothing)
                takes = self._first = self._weigh(before)
            except BaseException as raised:
                self._trouble = str(foreign(raised))
                # It may be loaded, and who asked believes that it is not.
                self._shut()
                raise
            self._trouble = ""
            return takes

    def _weigh(self, before: Amounts) -> Amounts:
        """What it takes that has just been loaded; `before` is what the server took without it."""
        heads = self.processes()
        self.tenant.shares = not heads
        grown = less(self._gauge.server(), before)
        if heads:
            whole = {device: max(0, grown[device]) for device in self._gauge.whole() if device in grown}
            return total([*self._gauge.families(heads).values(), whole])
        return larger({device: max(0, size) for device, size in grown.items()}, self.tenant.sure)

    def doze(self) -> Amounts:
        """Answer what is in flight, then free everything; what it took at most. Its gate is closed."""
        pause = _SHORTEST
        while self.sleeper.leave() is not None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        with self._moving:
            try:
                heads = self.processes()
                takes = total(self._gauge.families(heads).values()) if heads else self.tenant.takes
            finally:
                self._shut()
        return larger(takes, self._first)

    def _shut(self) -> None:
        inner, self._inner = self._inner, None
        if inner is None:
            return
        shares = self.tenant.shares
        try:
            with THRIFT:
                inner.close()
        finally:
            del inner
            if shares:
                trim()


def _nothing() -> None:
    """The files stay, for the next time."""
