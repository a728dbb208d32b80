"""One queue of requests, in the order in which they will run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from conch.types.request import InferRequest


class Line(Protocol):
    """Iterating and taking agree on the order; any request may leave from wherever it stands."""

    def append(self, request: InferRequest) -> None: ...
    def remove(self, request: InferRequest) -> None:
        """`request` leaves and does not run. It is there."""

    def take(self, count: int) -> list[InferRequest]:
        """The first `count` leave and run. There are as many."""

    def __iter__(self) -> Iterator[InferRequest]: ...
    def __len__(self) -> int: ...
    def __contains__(self, request: object) -> bool: ...


class Fifo:
    """First come, first served; joining and leaving, wherever, cost the same however many wait."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[InferRequest, None] = OrderedDict()

    def append(self, request: InferRequest) -> None:
        self._waiting[request] = None

    def remove(self, request: InferRequest) -> None:
        del self._waiting[request]

    def take(self, count: int) -> list[InferRequest]:
        pop = self._waiting.popitem
        return [pop(last=False)[0] for _ in range(count)]

    def __iter__(self) -> Iterator[InferRequest]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: object) -> bool:
        return request in self._waiting
