"""Functions that are models and wait until a test lets them go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator


class Gate:
    """Functions that wait until they are let go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def slow(self) -> Callable[[float], float]:
        def slow(x: float) -> float:
            self.wait()
            return x

        return slow

    def three(self) -> Callable[[float], Iterator[float]]:
        def three(x: float) -> Iterator[float]:
            yield x
            yield x + 1
            self.wait()
            yield x + 2

        return three

    def wait(self) -> None:
        self.entered.set()
        assert self.open.wait(60)
