"""Quantiles of the last minute and the histogram of first responses: what is observed, and how the page says it."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from conch.observe.latencies import Details, Latencies, details_of, latencies_of
from conch.observe.metrics import render
from conch.observe.row_stats import EMPTY, RowStats
from conch.observe.stats import Execution, ModelStats
from conch.observe.summary import Summary
from conch.schedule.batcher import QueueBatcher
from conch.schedule.queue import QueueScheduler
from conch.types.error import Code, InferError
from conch.types.response import FINAL, FailedResponse, InferResponse
from support.configs import model
from support.requests import Recorder, make_form, make_request

SECOND = 1_000_000_000
ALL = Details(histograms=True, summaries=True, quantiles=((0.5, 0.05), (0.99, 0.001)))


class Version:
    name, version, namespace, tags, gpus = "m", 1, "", {"team": 'a"b'}, ()

    def __init__(self, stats: ModelStats) -> None:
        self.stats = stats

    def pending(self) -> int:
        return 0


def page(stats: ModelStats, **options: Any) -> dict[str, float]:
    """Names of lines, with the label that tells lines of one name apart, and their values."""
    text = render([Version(stats)], **options).decode()
    return {
        sample.name.removesuffix("_total") + sample.labels.get("quantile", sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "reason" not in sample.labels
    }


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_a_value_of_its_rank(values: list[int], quantile: float) -> None:
    """Within half a percent, whatever the values."""
    summary = Summary()
    for value in values:
        summary.observe(value, SECOND)
    (found,) = summary.quantiles_us([quantile], SECOND)
    rank = max(1, math.ceil(quantile * len(values)))
    expected = sorted(values)[rank - 1] / 1000
    assert abs(found - expected) <= 0.006 * expected + 0.001
    assert (summary.count, summary.ns) == (len(values), sum(values))


def test_quantiles_are_of_the_last_minute() -> None:
    """Older values count for number and sum alone; without younger ones there is nothing to say."""
    summary = Summary()
    summary.observe(9_000_000, 5 * SECOND)
    summary.observe(1_000_000, 45 * SECOND, 3)
    assert summary.quantiles_us([1.0], 59 * SECOND) == [pytest.approx(9000, 0.01)]
    assert summary.quantiles_us([1.0], 61 * SECOND) == [pytest.approx(1000, 0.01)]
    assert math.isnan(summary.quantiles_us([1.0], 200 * SECOND)[0])
    assert (summary.count, summary.ns) == (4, 12_000_000)
    assert not summary._slots


def test_a_summary_stays_small() -> None:
    """However long it is observed, and whatever."""
    summary = Summary()
    for number in range(100_000):
        summary.observe(number * number, number * SECOND // 10)
    assert len(summary._slots) <= 6
    assert all(len(held) < 3000 for _, held in summary._slots)


@pytest.mark.parametrize(
    ("settings", "details"),
    [
        ([], Details()),
        ([("counter_latencies", "false"), ("summary_latencies", "True")], Details(counters=False, summaries=True)),
        ([("histogram_latencies", "1"), ("histogram_latencies", "off")], Details()),
        ([("summary_quantiles", "0.5:0.1, 1:0,")], Details(quantiles=((0.5, 0.1), (1.0, 0.0)))),
        ([("summary_quantiles", "0.5:0.1,0.50:0.2")], Details(quantiles=((0.5, 0.2),))),
    ],
)
def test_settings(settings: list[tuple[str, str]], details: Details) -> None:
    """Three switches and the quantiles; the last one counts."""
    assert details_of(settings) == details


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            ("summaries", "true"),
            "expected one of counter_latencies, histogram_latencies, summary_latencies, summary_quantiles",
        ),
        (("summary_latencies", "yes"), "summary_latencies must be true or false, got: yes"),
        *[
            (("summary_quantiles", worth), f"got: {worth}")
            for worth in (
                "",
                "0.5",
                "0.5:0.1:1",
                "a:b",
                "1.5:0",
                "0.5:-1",
                "nan:0",
                "0.5:0.1,,",
                ",",
                "1e999:0",
                "0.5:0.05 0.9:0.1",
            )
        ],
    ],
)
def test_settings_that_mean_nothing_are_refused(setting: tuple[str, str], text: str) -> None:
    """In one sentence that names the setting."""
    with pytest.raises(ValueError, match="--metrics-config: ") as caught:
        details_of([setting])
    assert str(caught.value).endswith(text)


def test_the_page_has_summaries() -> None:
    """Of requests, queue and the three parts of computing, each request counts."""
    stats = ModelStats(Latencies(ALL, decoupled=False))
    now = 1000 * SECOND
    requests = [make_request(queued_ns=now - 9_000_000) for _ in range(2)]
    for request in requests:
        request.queued_ns = now - 8_000_000
    stats.executed(requests, now - 7_000_000, now - 6_000_000, now - 2_000_000, now)
    found = page(stats)
    assert {name: value for name, value in found.items() if name.endswith(("us_count", "us_sum"))} == {
        f"nv_inference_{name}_summary_us_{part}": value
        for name, us in (
            ("request", 9000), ("queue", 1000), ("compute_input", 1000), ("compute_infer", 4000),
            ("compute_output", 2000),
        )
        for part, value in (("count", 2), ("sum", 2 * us))
    }  # fmt: skip
    assert "nv_inference_request_summary_us0.5" in found
    assert "nv_inference_request_summary_us0.99" in found
    assert not [name for name in found if "cache" in name]


def test_models_with_a_cache_have_summaries_of_it() -> None:
    """And none of requests: hits and misses together are no one distribution."""
    stats = ModelStats(Latencies(ALL, decoupled=False))
    stats.cached = True
    stats.hit([make_request()], 1000, 5000, 2000)
    stats.missed(3_000_000)
    found = page(stats)
    assert found["nv_cache_hit_summary_per_model_sum"] == 2
    assert found["nv_cache_miss_summary_per_model_sum"] == 3000
    assert found["nv_inference_queue_summary_us_count"] == 1
    assert not [name for name in found if "request_summary" in name]


def test_latency_counters_can_be_left_out() -> None:
    """Counts stay, durations and the counters of models with a cache go."""
    stats = ModelStats()
    stats.cached = True
    left_out = set(page(stats)) - set(page(stats, latency_counters=False))
    assert len(left_out) == 9
    assert all("duration_us" in name or "nv_cache_" in name for name in left_out)
    assert "nv_inference_exec_count" in page(stats, latency_counters=False)


class Taking:
    """A runner that takes what is there when it is woken."""

    running = 0

    def __init__(self) -> None:
        self.batch: list[Any] = []

    def open(self) -> int:
        return 0

    def wake(self) -> None:
        self.batch += self.scheduler.take(self)

    def close(self) -> None:
        """Nothing is held."""

    scheduler: QueueScheduler


def test_first_responses_are_timed() -> None:
    """Of decoupled models, once a request; an end without a response is none, an error neither."""
    latencies = Latencies(ALL, decoupled=True)
    stats = ModelStats(latencies)
    scheduler = QueueScheduler(QueueBatcher(1), stats, lambda call: call(), lambda *_: None)  # type: ignore[arg-type]
    runner = Taking()
    runner.scheduler = scheduler
    scheduler.attach(runner)
    sink = Recorder()
    for _ in range(4):
        scheduler.submit(make_request(sink=sink))
        scheduler._idle.append(runner)
    one, two, three, four = runner.batch
    for final in (False, False, True):
        one.sink.reply(one, InferResponse(()), final)
    two.sink.reply(two, FINAL, True)
    three.sink.fail(three, InferError(Code.INTERNAL, "no"))
    four.sink.reply(four, FailedResponse(InferError(Code.INTERNAL, "no")), True)
    assert len(sink.finals()) == 4
    found = page(stats)
    assert found["nv_inference_first_response_histogram_ms_count"] == 1
    assert found["nv_inference_first_response_histogram_ms_bucket+Inf"] == 1


def test_the_only_response_is_the_first() -> None:
    """Models that answer once have the histogram too: requests that were executed well, and hits of the cache."""
    stats = ModelStats(Latencies(Details(histograms=True), decoupled=False))
    failed, answered, hit = (make_request(queued_ns=0) for _ in range(3))
    stats.executed([answered], 0, 0, 0, 150_000_000, [failed])
    stats.hit([hit], 0, 20_000_000, 0)
    found = page(stats)
    name = "nv_inference_first_response_histogram_ms"
    assert [found[f"{name}_bucket{end}"] for end in ("100", "500", "+Inf")] == [1, 2, 2]
    assert found[f"{name}_sum"] == 170
    assert not [each for each in found if "summary" in each]


def test_the_last_step_of_an_ensemble_tells_late() -> None:
    """Its times join those of the request that was counted already."""
    stats = ModelStats(Latencies(ALL, decoupled=False))
    now = time.monotonic_ns()
    for before in ((0, 0, 0), (1_000, 5_000_000, 2_000)):
        request = make_request(queued_ns=now)
        stats.composed(request, now, now, before)
        stats.composed_more(request, (2_000, 10_000_000, 0), before)
    found = page(stats)
    name = "nv_inference_compute_infer_summary_us"
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (2, 25_000)
    assert found[f"{name}0.5"] == pytest.approx(10_000, 0.01)
    assert found[f"{name}0.99"] == pytest.approx(15_000, 0.01)
    assert found["nv_inference_compute_output_summary_us_sum"] == 2


def test_the_last_step_may_tell_before_the_request_is_counted() -> None:
    """Its thread may come between the sum and the counting: nothing is lost."""
    stats = ModelStats()
    request = make_request(queued_ns=0)
    stats.composed_more(request, (1, 20, 3), (4, 5, 6))
    stats.composed(request, 0, 0, (4, 5, 6))
    assert (stats.compute_infer.count, stats.compute_infer.ns) == (1, 25)
    batch = stats.batches[request.form.rows]
    assert (batch.compute_infer.count, batch.compute_infer.ns) == (1, 25)


def test_what_has_left_the_window_is_amended_in_the_sum_alone() -> None:
    """A step may tell after a minute."""
    summary = Summary()
    summary.observe(1_000, 5 * SECOND)
    summary.observe(3_000, 500 * SECOND)
    summary.amend(1_000, 500)
    assert (summary.count, summary.ns) == (2, 4_500)
    assert summary.quantiles_us([0.0, 1.0], 500 * SECOND) == [pytest.approx(3, 0.01)] * 2


def test_buckets_hold_what_is_at_most_their_end() -> None:
    """Milliseconds, and the sum of all."""
    latencies = Latencies(ALL, decoupled=True)
    assert latencies.first is not None
    latencies.first.observe([ms * 1_000_000 for ms in (1, 100, 101, 5000, 9000)])
    found = page(ModelStats(latencies))
    name = "nv_inference_first_response_histogram_ms"
    assert [found[f"{name}_bucket{end}"] for end in ("100", "500", "2000", "5000", "+Inf")] == [2, 3, 3, 4, 5]
    assert found[f"{name}_sum"] == 14202


@pytest.mark.parametrize(
    ("buckets", "ends"), [("", ["100", "500", "2000", "5000"]), ("0.5, 1, 2.25", ["0.5", "1", "2.25"])]
)
def test_a_model_may_have_buckets_of_its_own(buckets: str, ends: list[str]) -> None:
    """`model_metrics` of its config, in milliseconds; of a family named twice the last."""
    control = "metric_control {{ metric_identifier {{ family: '{}' }} histogram_options {{ buckets: [ {} ] }} }}"
    first = "nv_inference_first_response_histogram_ms"
    controls = [control.format(first, "7"), control.format("other", "3"), control.format(first, buckets)]
    config = model(f"model_metrics {{ {' '.join(controls)} }}" if buckets else "")
    stats = ModelStats(latencies_of(ALL, config, decoupled=False))
    stats.executed([make_request(queued_ns=0)], 1, 2, 3, 1_000_000)
    found = page(stats)
    shown = {name.removeprefix(f"{first}_bucket"): value for name, value in found.items() if "_bucket" in name}
    assert list(shown) == [*ends, "+Inf"]
    assert [value for end, value in shown.items() if end not in ("0.5", "+Inf")] == [1] * (len(ends) - bool(buckets))


def test_buckets_without_a_histogram_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """The operator has to ask for histograms, too."""
    family = "metric_identifier { family: 'nv_inference_first_response_histogram_ms' }"
    config = model(f"model_metrics {{ metric_control {{ {family} histogram_options {{ buckets: [ 1 ] }} }} }}")
    assert latencies_of(Details(), config, decoupled=False) is None
    assert "have no effect without --metrics-config=histogram_latencies=true" in caplog.text


def test_decoupled_requests_count_when_they_end() -> None:
    """One by one, as their final responses are sent."""
    stats = ModelStats(Latencies(ALL, decoupled=True))
    request = make_request(queued_ns=1000)
    request.queued_ns = 2000
    stats.answered(request, Execution(5000, 6000, 8000, 9000), 10_000)
    found = page(stats)
    assert [found[f"nv_inference_{name}_summary_us_sum"] for name in ("request", "queue", "compute_infer")] == [9, 3, 2]


def test_rows_without_a_request_are_none() -> None:
    """Sequence models with the direct strategy count their clients' requests alone."""
    stats = RowStats(Latencies(ALL, decoupled=False))
    requests = [make_request(), make_request(make_form(model=EMPTY)), make_request(make_form(model=EMPTY))]
    stats.executed(requests, 1, 2, 3, 4)
    assert page(stats)["nv_inference_request_summary_us_count"] == 1
    assert {size: batch.compute_infer.count for size, batch in stats.batches.items()} == {3: 1}
    assert (stats.inferences, stats.executions) == (1, 1)
