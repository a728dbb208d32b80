"""Metrics that Python models define: `pb_utils.MetricFamily`, and what the metrics page shows of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import Placement
from conch.observe.custom import Families
from conch.observe.metrics import taken
from support.python_models import Served, array_of, make_spec, model_source, outcome, served

SPEC = make_spec("FP64")
MORE = """
def initialize(self, args):
    make = pb_utils.MetricFamily
    self.counter = make(name="own_total", description="what\\nit is", kind=make.COUNTER)
    self.count = self.counter.Metric(labels={"b": 'x"y', "a": "1"})
    self.gauge = make(name="own_gauge", description="now", kind=make.GAUGE)
    self.level = self.gauge.Metric()
    self.histogram = make(name="own_ms", description="how long", kind=make.HISTOGRAM)
    self.times = self.histogram.Metric(labels={"a": "1"}, buckets=[0.5, 10.0])
"""
EXECUTE = """
    self.count.increment(2)
    self.level.set(5)
    self.level.increment(-7.25)
    for value in (0.5, 0.6, 1e12):
        self.times.observe(value)
    return [answer(np.array([self.count.value(), self.level.value()])) for _ in requests]
"""
PAGE = """\
# HELP own_total what\\nit is
# TYPE own_total counter
own_total{a="1",b="x\\"y"} 2
# HELP own_gauge now
# TYPE own_gauge gauge
own_gauge -2.25
# HELP own_ms how long
# TYPE own_ms histogram
own_ms_count{a="1"} 3
own_ms_sum{a="1"} 1000000000001.1
own_ms_bucket{a="1",le="0.5"} 1
own_ms_bucket{a="1",le="10"} 2
own_ms_bucket{a="1",le="+Inf"} 3
"""


def values(model: Served) -> Any:
    (answer,) = model.ask(model.request(np.zeros((1, 1))))
    return getattr(answer, "message", None) or array_of(answer.outputs[0]).tolist()


def test_metrics_of_all_kinds_are_shown_until_the_model_goes(tmp_path: Path) -> None:
    """Made in initialize, changed and read in execute, on the page in Prometheus' text, and gone with the model."""
    families = Families()
    with served(tmp_path, model_source(EXECUTE, MORE), SPEC, metrics=families) as model:
        assert values(model) == [2.0, -2.25]
        assert families.render().decode() == PAGE
    assert families.render() == b""


@pytest.mark.slow
def test_instances_share_what_has_the_same_name(tmp_path: Path) -> None:
    """Two instances count together; what they share goes with the last."""
    families = Families()
    execute = "self.count.increment(1)\nreturn [answer(np.array([self.count.value()])) for _ in requests]"
    with served(tmp_path, model_source(execute, MORE), SPEC, metrics=families) as model:
        second = model.model.instance(Placement("m_0_1", "CPU"))
        assert values(model) == [1.0]
        first, model.instance = model.instance, second
        assert values(model) == [2.0]
        first.close()
        assert values(model) == [3.0]
    assert families.render() == b""


@pytest.mark.slow
def test_a_worker_that_dies_takes_its_metrics_along(tmp_path: Path) -> None:
    """The next one makes them anew: nothing is left of a process that is no more."""
    families = Families()
    with served(tmp_path, model_source(EXECUTE, MORE), SPEC, metrics=families) as model:
        assert values(model) == [2.0, -2.25]
        os.kill(model.pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while not (model.instance.ready() and b'own_total{a="1",b="x\\"y"} 0' in families.render()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert values(model) == [2.0, -2.25]


WRAPPED = "Failed to process the request for model 'm_0_0', message: "
KIND = "TRITONSERVER_METRIC_KIND_"
GONE = (
    "Failed to increment metric value: Invalid metric operation as the corresponding 'MetricFamily' has been deleted. "
    "The 'MetricFamily' object should be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (
            "self.count.increment(-1)",
            (
                f"Failed to increment metric value: {WRAPPED}{KIND}COUNTER can only be incremented monotonically by "
                "non-negative values."
            ),
        ),
        ("self.count.set(1)", f"Failed to set metric value: {WRAPPED}{KIND}COUNTER does not support Set"),
        ("self.count.observe(1)", f"Failed to observe metric value: {WRAPPED}{KIND}COUNTER does not support Observe"),
        ("self.level.observe(1)", f"Failed to observe metric value: {WRAPPED}{KIND}GAUGE does not support Observe"),
        (
            "self.times.increment(1)",
            f"Failed to increment metric value: {WRAPPED}{KIND}HISTOGRAM does not support Increment",
        ),
        ("self.times.set(1)", f"Failed to set metric value: {WRAPPED}{KIND}HISTOGRAM does not support Set"),
        ("self.times.value()", f"Failed to get metric value: {WRAPPED}{KIND}HISTOGRAM does not support Value"),
        ("self.counter.Metric(labels=[1])", "Failed to create metric. Labels must be a dictionary."),
        ("self.counter.Metric(labels={'a': 1})", "Error when creating Metric: labels must be strings by name, found"),
        ("self.counter.Metric(labels={'a b': '1'})", f"Error when creating Metric: {WRAPPED}Invalid label name"),
        ("self.counter.Metric(buckets=[1.0])", "Failed to create metric. Unexpected buckets found."),
        ("self.histogram.Metric()", "Failed to create metric. Missing required buckets."),
        ("self.histogram.Metric(buckets=(1,))", "Failed to create metric. Buckets must be a list."),
        (
            "self.histogram.Metric(buckets=[1.0, 1.0])",
            f"Error when creating Metric: {WRAPPED}Bucket Boundaries must be strictly sorted",
        ),
        (
            "pb_utils.MetricFamily('own_total', '', pb_utils.MetricFamily.GAUGE)",
            f"Error when creating MetricFamily: {WRAPPED}Family name already exists with different type",
        ),
        (
            "pb_utils.MetricFamily('nv_cpu_utilization', '', pb_utils.MetricFamily.GAUGE)",
            f"Error when creating MetricFamily: {WRAPPED}Family name already exists with different type",
        ),
        (
            "pb_utils.MetricFamily('own total', '', pb_utils.MetricFamily.GAUGE)",
            f"Error when creating MetricFamily: {WRAPPED}Invalid metric name",
        ),
        ("pb_utils.MetricFamily('own_other', '', pb_utils.MetricFamily.GAUGE).Metric().increment(1)", GONE),
    ],
)
def test_refusals_have_tritons_words(served_model: Served, attempt: str, text: str) -> None:
    """What a metric cannot do, and what no metric can be."""
    request = served_model.request(np.zeros((1, 1)), parameters={"code": attempt})
    assert served_model.start([request]).wait(20)
    assert outcome(request).message.startswith(text)


@pytest.fixture(scope="module")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    execute = """
        import json
        try:
            exec(json.loads(requests[0].parameters())["code"])
        except pb_utils.TritonModelException as error:
            return [pb_utils.InferenceResponse([], pb_utils.TritonError(str(error)))]
    """
    source = model_source(execute, MORE)
    with served(tmp_path_factory.mktemp("m"), source, SPEC, metrics=Families(taken)) as model:
        yield model
