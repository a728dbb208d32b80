"""Which series counts what for models with instances on GPUs, and that the sum of all is what there always was."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.api import Placement
from conch.backend.counters import counters
from conch.observe import metrics
from conch.observe.gpu_stats import on_gpu, whole
from conch.observe.latencies import Details, Latencies
from conch.observe.row_stats import EMPTY, RowStats
from conch.observe.stats import WARMUP, Execution, ModelStats, Reason
from conch.protocol.v2 import answers
from support.gpu import gpu
from support.plane import echo_plane
from support.requests import make_form, make_request

NAMES = {0: f"GPU-{gpu(0).uuid}", 1: f"MIG-{gpu(1).uuid}"}
COUNTS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "failures", "inferences",
    "executions", "batches", "responses",
)  # fmt: skip
Event = tuple[int | None, str | Reason, int, int]
#: An event: whom it happens to (None: the CPU), what, and how many requests, failed ones too.
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([None, 0, 1, 7]), st.sampled_from(["executed", "decoupled", *Reason]), st.integers(1, 3),
        st.integers(0, 2),
    ),
    max_size=20,
)  # fmt: skip


def version(stats: ModelStats, *gpus: int) -> Any:
    return SimpleNamespace(name="m", version=1, stats=stats, namespace="", tags={}, gpus=gpus, pending=lambda: 5)


def series(stats: ModelStats, *gpus: int, metric: str = "nv_inference_count", names: Any = NAMES) -> dict[str, str]:
    """Labels and values of a metric's lines."""
    page = metrics.render([version(stats, *gpus)], gpus=names).decode()
    return dict(re.findall(rf"^{metric}(\{{.*\}}) (.*)$", page, re.MULTILINE))


def happens(counted: ModelStats, what: str | Reason, count: int, failed: int) -> None:
    requests = [make_request(make_form(rows=2), queued_ns=10) for _ in range(count)]
    if isinstance(what, Reason):
        counted.failed(requests, what, 50)
    elif what == "executed":
        counted.executed(requests, 20, 30, 70, 80, [make_request() for _ in range(failed)])
    else:
        execution = Execution(20)
        for request in requests:
            counted.responded([(0, "success", 3, 2)])
            counted.answered(request, execution, 90)
        counted.ran(requests, execution, 25, 80, 81)


def test_an_instance_on_a_gpu_counts_there() -> None:
    """Instances on one GPU share its counters; those on a CPU count for the version, as if there were no GPUs."""
    stats = ModelStats()
    first, second, third = (counters(stats, Placement("m", "GPU", device)) for device in (0, 1, 0))
    assert first is third is not second
    assert counters(stats, Placement("m", "CPU")) is counters(stats, Placement("m", "MODEL")) is stats
    assert stats.gpus == {0: first, 1: second}


@given(EVENTS)
def test_the_sum_is_what_one_counter_would_have_counted(
    events: list[tuple[int | None, str | Reason, int, int]],
) -> None:
    """Whatever happens where: the statistics are those of a model whose instances all count together."""
    stats, alone = ModelStats(), ModelStats()
    for device, what, count, failed in events:
        happens(stats if device is None else on_gpu(stats, device), what, count, failed)
        happens(alone, what, count, failed)
    found = whole(stats)
    assert {name: getattr(found, name) for name in COUNTS} == {name: getattr(alone, name) for name in COUNTS}
    assert (found.last_inference_ms > 0) == (alone.last_inference_ms > 0)
    assert not events or whole(alone) is alone


def test_a_version_has_a_series_for_each_gpu_and_one_for_the_rest() -> None:
    """As Triton's reporters: the version's own has no `gpu_uuid`; what instances on the CPU did is in it."""
    stats = ModelStats()
    for device, count in ((0, 1), (1, 2)):
        happens(on_gpu(stats, device), "executed", count, 0)
    happens(stats, "executed", 3, 0)
    assert series(stats, 0, 1) == {
        '{model="m",version="1"}': "6",
        f'{{gpu_uuid="{NAMES[0]}",model="m",version="1"}}': "2",
        f'{{gpu_uuid="{NAMES[1]}",model="m",version="1"}}': "4",
    }
    assert list(series(stats, 0, 1, metric="nv_inference_pending_request_count").values()) == ["5", "0", "0"]


@pytest.mark.parametrize("names", [None, {}, {0: NAMES[0]}])
def test_what_a_gpu_without_a_name_does_is_in_the_series_of_the_version(names: dict[int, str] | None) -> None:
    """`--allow-gpu-metrics=false`, no NVML, or a GPU that NVML does not know: nothing is lost."""
    stats = ModelStats(Latencies(Details(summaries=True), decoupled=False))
    for device in (0, 1):
        happens(on_gpu(stats, device), "executed", 1, 0)
    others = {f'{{gpu_uuid="{name}",model="m",version="1"}}': "2" for name in (names or {}).values()}
    left = 2 - len(others)
    assert series(stats, 0, 1, names=names) == {'{model="m",version="1"}': str(2 * left), **others}
    summary = series(stats, 0, 1, names=names, metric="nv_inference_queue_summary_us_count")
    assert summary['{model="m",version="1"}'] == str(left)


@pytest.mark.parametrize("reason", Reason)
def test_requests_that_reach_no_model_count_for_the_version(reason: Reason) -> None:
    """Refused, given up in the queue or by an instance before it began: no GPU has anything to do with that."""
    stats = ModelStats()
    on_gpu(stats, 0).failed([make_request()], reason, 5)
    on_device = reason is Reason.BACKEND
    assert (stats.failures[reason], on_gpu(stats, 0).failures[reason]) == (not on_device, on_device)


def test_a_gpu_that_is_left_has_no_series() -> None:
    """Its counts stay in the statistics, and begin in no other series."""
    stats = ModelStats()
    happens(on_gpu(stats, 1), "executed", 1, 0)
    assert series(stats, 0) == {'{model="m",version="1"}': "0", f'{{gpu_uuid="{NAMES[0]}",model="m",version="1"}}': "0"}
    assert whole(stats).inferences == 2


def test_warm_ups_and_rows_without_a_request_count_on_no_gpu() -> None:
    """Whenever the version was told of them."""
    stats = RowStats()
    mine = on_gpu(stats, 0)
    forms = [make_form(model=model) for model in (None, WARMUP, EMPTY)]
    mine.executed([make_request(form) for form in forms], 1, 2, 3, 4)
    mine.executed([make_request(forms[1])], 1, 2, 3, 4)
    assert (mine.success.count, mine.executions, sorted(mine.batches)) == (1, 1, [2])


def test_traces_and_meters_are_told_once() -> None:
    """Also where an instance counts on its GPU, whenever the first request was traced."""
    told: list[object] = []
    request = make_request()
    request.meter = SimpleNamespace(computed=told.append)
    on_gpu(ModelStats(), 0).executed([request], 20, 30, 70, 80)
    request.trace = SimpleNamespace(executed=lambda *times: told.append(times))
    on_gpu(ModelStats(), 0).answered(request, Execution(20, 30, 70, 80), 90)
    assert told == [(10, 40, 10), (request.queued_ns, 20, 30, 70, 90), (10, 40, 10)]


def test_the_statistics_call_says_the_sum() -> None:
    """GetInferenceStatistics has no GPUs: one answer for a version."""
    plane, registry = echo_plane()
    stats = registry.versions["identity"].stats
    happens(on_gpu(stats, 0), "executed", 2, 1)
    happens(on_gpu(stats, 1), "executed", 1, 0)
    (shown,) = json.loads(answers.statistics(plane.statistics("identity", "")))["model_stats"]
    assert (shown["inference_count"], shown["execution_count"]) == (6, 2)
    assert shown["inference_stats"]["fail"]["count"] == 1


def test_the_page_of_models_on_cpus_does_not_know_of_gpus() -> None:
    """The same bytes, whether or not there are GPUs."""
    stats = ModelStats()
    happens(stats, "executed", 2, 1)
    assert metrics.render([version(stats)], gpus=NAMES) == metrics.render([version(stats)])
