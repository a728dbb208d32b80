"""`pb_utils.MetricFamily`: metrics of the model's own, which the server keeps and shows."""

from __future__ import annotations

import enum
import math
from typing import Any

from conch.backend.python.asks import Asks
from conch.backend.python.calls import runtime
from conch.backend.python.channel import ASK_HEAD, DROP_FAMILY, INCREMENT, METRIC, METRIC_VALUE, OBSERVE, SET
from conch.backend.python.errors import TritonModelException

_CLEARED = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


class MetricKind(enum.IntEnum):
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


COUNTER, GAUGE, HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM


class Metric:
    """One series; made by `MetricFamily.Metric`. It lives as long as its family."""

    __slots__ = ("__weakref__", "_asks", "_cleared", "_kind", "_number")
    _asks: Asks
    _cleared: bool
    _kind: MetricKind
    _number: int

    def __init__(self) -> None:
        raise TypeError("a Metric comes from MetricFamily.Metric()")

    def increment(self, value: float) -> None:
        """By a negative value only if it is a gauge."""
        if self._kind is HISTOGRAM:
            self._refuse("increment", "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment")
        if self._kind is COUNTER and value < 0:
            text = "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
            self._refuse("increment", text)
        self._tell("increment", INCREMENT, value)

    def set(self, value: float) -> None:
        if self._kind is not GAUGE:
            self._refuse("set", f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Set")
        self._tell("set", SET, value)

    def observe(self, value: float) -> None:
        if self._kind is not HISTOGRAM:
            self._refuse("observe", f"TRITONSERVER_METRIC_KIND_{self._kind.name} does not support Observe")
        self._tell("observe", OBSERVE, value)

    def value(self) -> float:
        """As the server has it: what other models and instances did counts too."""
        if self._kind is HISTOGRAM:
            self._refuse("get", "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value")
        if self._cleared:
            self._refuse("get", _CLEARED)
        return float(self._asks.ask({"ask": "value", "metric": self._number}))

    def _tell(self, verb: str, operation: int, value: float) -> None:
        if self._cleared:
            self._refuse(verb, _CLEARED)
        # Nothing to wait for: what could go wrong has been looked at here.
        self._asks.send(ASK_HEAD.pack(METRIC, operation, self._number) + METRIC_VALUE.pack(value))

    def _refuse(self, verb: str, text: str) -> None:
        raise TritonModelException(
            f"Failed to {verb} metric value: {_CLEARED if self._cleared else runtime.refusal(text)}"
        )


class MetricFamily:
    """Metrics of one name. Models and instances that use the same name share them."""

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    __slots__ = ("__weakref__", "_asks", "_kind", "_metrics", "_number")
    _asks: Asks
    _metrics: list[Metric]

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        if type(name) is not str or type(description) is not str or not isinstance(kind, MetricKind):
            raise TypeError(
                "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
                "    1. c_python_backend_utils.MetricFamily(name: str, description: str, kind: "
                f"c_python_backend_utils.MetricKind)\n\nInvoked with: {name!r}, {description!r}, {kind!r}"
            )
        asks = runtime.asks
        if asks is None:
            raise TritonModelException("Error when creating MetricFamily: no model is being served here.")
        question = {"ask": "family", "name": name, "description": description, "kind": kind.name.lower()}
        try:
            self._number = asks.ask(question)
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating MetricFamily: {runtime.refusal(str(error))}") from None
        self._asks = asks
        self._kind = kind
        self._metrics = []

    def Metric(  # noqa: N802  Triton's name
        self, labels: dict[str, Any] | None = None, buckets: list[float] | None = None
    ) -> Metric:
        """One series; `buckets` are the upper bounds of a histogram's, ascending."""
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if buckets is not None and self._kind is not HISTOGRAM:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        if buckets is None and self._kind is HISTOGRAM:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        for name, value in (labels or {}).items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TritonModelException(
                    f"Error when creating Metric: labels must be strings by name, found {name!r}: {value!r}"
                )
        for bound in buckets or ():
            if not isinstance(bound, (int, float)) or math.isnan(bound):
                raise TritonModelException(f"Error when creating Metric: buckets must be numbers, found {bound!r}")
        if buckets and buckets[-1] == math.inf:
            # Every histogram ends with that one.
            buckets = buckets[:-1]
        question = {"ask": "metric", "family": self._number, "labels": labels or {}, "buckets": buckets}
        metric = Metric.__new__(Metric)
        try:
            metric._number = self._asks.ask(question)
        except TritonModelException as error:
            raise TritonModelException(f"Error when creating Metric: {runtime.refusal(str(error))}") from None
        metric._asks = self._asks
        metric._kind = self._kind
        metric._cleared = False
        self._metrics.append(metric)
        return metric

    def __del__(self) -> None:
        try:
            metrics, asks, number = self._metrics, self._asks, self._number
        except AttributeError:
            return
        for metric in metrics:
            metric._cleared = True
        asks.send(ASK_HEAD.pack(METRIC, DROP_FAMILY, number) + METRIC_VALUE.pack(0.0))
