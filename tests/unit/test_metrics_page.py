"""The metrics page against Triton's, and against a Prometheus parser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conch.observe.metrics import plain, render
from conch.observe.process import Machine, MachineGauge, Reading, read
from conch.observe.stats import ModelStats, Reason

#: What Triton 2.51 prints for one model without requests; the model load time is of later releases.
TRITON = r"""
# HELP nv_inference_request_success Number of successful inference requests, all batch sizes
# TYPE nv_inference_request_success counter
nv_inference_request_success{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{_team="a\"b\\c",model="good",reason="REJECTED",version="1"} 0
nv_inference_request_failure{_team="a\"b\\c",model="good",reason="CANCELED",version="1"} 0
nv_inference_request_failure{_team="a\"b\\c",model="good",reason="BACKEND",version="1"} 0
nv_inference_request_failure{_team="a\"b\\c",model="good",reason="OTHER",version="1"} 0
# HELP nv_inference_count Number of inferences performed (does not include cached requests)
# TYPE nv_inference_count counter
nv_inference_count{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_request_duration_us Cumulative inference request duration in microseconds (includes cached requests)
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds (includes cached requests)
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_input_duration_us counter
nv_inference_compute_input_duration_us{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_infer_duration_us counter
nv_inference_compute_infer_duration_us{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds (does not include cached requests)
# TYPE nv_inference_compute_output_duration_us counter
nv_inference_compute_output_duration_us{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_model_load_duration_secs Model load time in seconds
# TYPE nv_model_load_duration_secs gauge
nv_model_load_duration_secs{_team="a\"b\\c",model="good",version="1"} 0
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0
# HELP nv_cpu_memory_total_bytes CPU total memory (RAM), in bytes
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes 0
# HELP nv_cpu_memory_used_bytes CPU used memory (RAM), in bytes
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 0
"""  # noqa: E501


@dataclass
class Version:
    name: str = "m"
    version: int = 1
    stats: ModelStats = field(default_factory=ModelStats)
    tags: Mapping[str, str] = field(default_factory=dict)
    namespace: str = ""
    waiting: int = 0

    def pending(self) -> int:
        return self.waiting


def parsed(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_page_is_tritons() -> None:
    """Names, help texts, types, labels and their order are Triton's, byte for byte."""
    page = render([Version("good", tags={"team": 'a"b\\c'})], Machine())
    assert page.decode() == TRITON.lstrip()


def test_values_are_the_counters() -> None:
    """Each counter shows its number; durations are microseconds of all requests."""
    version = Version(waiting=4)
    stats = version.stats
    stats.inferences, stats.executions, stats.load_seconds = 9, 3, 1.25
    stats.success.count, stats.success.ns = 5, 7_999_999
    stats.queue.ns, stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns = 1000, 2000, 3000, 4000
    stats.failures[Reason.CANCELED] = 2
    values = parsed(render([version]))
    labels = (("model", "m"), ("version", "1"))
    assert {name: value for (name, seen), value in values.items() if seen == labels} == {
        "nv_inference_request_success": 5,
        "nv_inference_count": 9,
        "nv_inference_exec_count": 3,
        "nv_inference_request_duration_us": 7999,
        "nv_inference_queue_duration_us": 1,
        "nv_inference_compute_input_duration_us": 2,
        "nv_inference_compute_infer_duration_us": 3,
        "nv_inference_compute_output_duration_us": 4,
        "nv_inference_pending_request_count": 4,
        "nv_model_load_duration_secs": 1.25,
    }
    failure = ("nv_inference_request_failure", (("model", "m"), ("reason", "CANCELED"), ("version", "1")))
    assert values[failure] == 2


def test_page_without_models_is_well_formed() -> None:
    """No models, no gauges: an empty page; gauges stand alone."""
    assert render([]) == b""
    assert parsed(render([], Machine(0.5, 17_000_000_000, 8))) == {
        ("nv_cpu_utilization", ()): 0.5,
        ("nv_cpu_memory_total_bytes", ()): 17_000_000_000,
        ("nv_cpu_memory_used_bytes", ()): 8,
    }


@given(st.text(max_size=8), st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3))
def test_any_name_and_tag_can_be_read_back(name: str, tags: dict[str, str]) -> None:
    """Quotes, backslashes and newlines in names and tags never break the page."""
    for _, labels in parsed(render([Version(name, tags=tags)])):
        assert dict(labels)["model"] == name
        assert all(value in tags.values() for key, value in labels if key.startswith("_"))


@given(st.one_of(st.integers(0, 2**70), st.floats(0, 1e300)))
def test_numbers_are_plain_digits(value: float) -> None:
    """No exponent, and the value is kept exactly."""
    text = plain(value)
    assert set(text) <= set("0123456789.")
    assert type(value)(text) == value


@pytest.mark.parametrize(("value", "text"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")])
def test_what_is_no_number_is_written_as_prometheus_does(value: float, text: str) -> None:
    """Models may set a gauge to anything."""
    assert plain(value) == text


def test_cpu_is_the_share_between_two_readings() -> None:
    """The gauge is read at most once per interval; the first reading says nothing of the CPU."""
    readings = iter([(100.0, 50.0, 1000, 600), (110.0, 57.5, 1000, 500), (110.0, 57.5, 1000, 500)])
    clock = iter([0.0, 1.0, 2.0, 9.0])

    def next_reading() -> Reading:
        return next(readings)

    gauge = MachineGauge(2.0, next_reading, lambda: next(clock))
    assert gauge.now() == Machine(0.0, 1000, 400)
    assert gauge.now() == Machine(0.0, 1000, 400)
    assert gauge.now() == Machine(0.25, 1000, 500)
    assert gauge.now() == Machine(0.0, 1000, 500)


def test_this_machine_can_be_read() -> None:
    """Total and idle CPU time and memory are plausible."""
    total, idle, memory, available = read()
    assert total > idle > 0
    assert memory > available > 0


@pytest.mark.parametrize("key", ["", "a b", "ü", "model"])
def test_odd_tag_keys_make_valid_names(key: str) -> None:
    """A tag's key is made into a label name; one called like a label of ours does not touch it."""
    values = parsed(render([Version(tags={key: "x"})]))
    assert all(dict(labels)["model"] == "m" for _, labels in values)
