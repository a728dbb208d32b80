"""The metrics that one worker's model has made, by the numbers that the worker knows them by."""

from __future__ import annotations

import itertools

import msgspec

from conch.backend.python.channel import DROP_FAMILY, INCREMENT, OBSERVE, SET
from conch.observe.custom import Families, Family, Series
from conch.types.error import internal, unsupported


class Question(msgspec.Struct):
    """What a QUESTION asks; which fields it has depends on `ask`."""

    ask: str
    name: str = ""
    config: str = ""
    files: list[tuple[str, int]] = []
    dependents: bool = False
    version: str = ""
    description: str = ""
    kind: str = ""
    family: int = 0
    metric: int = 0
    labels: dict[str, str] = {}
    buckets: list[float] | None = None


class Keeping:
    """What is asked for here is let go of when the worker says so, or is gone."""

    def __init__(self, families: Families) -> None:
        self._families = families
        self._numbers = itertools.count(1)
        self._held: dict[int, tuple[Family, list[int]]] = {}
        self._series: dict[int, Series] = {}

    def answer(self, question: Question) -> float:
        """To `family` and `metric` a number, to `value` a metric's. Raises InferError."""
        if question.ask == "value":
            return self._find(question.metric).total
        number = next(self._numbers)
        if question.ask == "family":
            self._held[number] = self._families.family(question.name, question.description, question.kind), []
        elif question.ask == "metric":
            if question.family not in self._held:
                raise internal("the metric family is gone")
            family, members = self._held[question.family]
            self._series[number] = self._families.series(family, question.labels, question.buckets or ())
            members.append(number)
        else:
            raise unsupported(f"a worker asked for {question.ask!r}")
        return number

    def change(self, operation: int, number: int, value: float) -> None:
        """What cannot be is ignored: the worker has checked what a model may do."""
        if operation == DROP_FAMILY:
            self._drop(number)
            return
        series = self._series.get(number)
        if series is None:
            return
        if operation == INCREMENT:
            series.increment(value)
        elif operation == SET:
            series.set(value)
        elif operation == OBSERVE:
            series.observe(value)

    def close(self) -> None:
        for number in list(self._held):
            self._drop(number)

    def _drop(self, number: int) -> None:
        held = self._held.pop(number, None)
        if held is None:
            return
        family, members = held
        for member in members:
            self._families.drop_series(self._series.pop(member))
        self._families.drop_family(family)

    def _find(self, number: int) -> Series:
        series = self._series.get(number)
        if series is None:
            raise internal("Could not get metric value. Metric has been invalidated.")
        return series
