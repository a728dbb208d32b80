"""The benchmark's plan: workloads that can be named, run and judged."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format

from conch.pb.model_config_pb2 import ModelConfig
from figures import Sample, at_least
from load import Workload, _pace
from plan import WORKLOADS, Plan, Planned
from report import Result
from repositories import write_repositories


def test_workloads_have_names_of_their_own() -> None:
    """A figure in a report belongs to one workload."""
    names = [each.workload.name for each in WORKLOADS]
    assert len(set(names)) == len(names)


def test_goals_are_about_what_is_measured() -> None:
    """A goal for a figure that no run has would never be looked at."""
    assert {figure for each in WORKLOADS for figure in each.goals} <= set(Sample.__slots__)


def test_the_whole_plan_is_short() -> None:
    """Measuring takes less than fifteen minutes; the tools need almost as long to start and to end."""
    plan = Plan()
    seconds = sum(2 * (plan.rounds * plan.seconds * each.share + plan.warm_seconds) for each in WORKLOADS)
    assert seconds < 15 * 60


def test_both_repositories_hold_every_model(tmp_path: Path) -> None:
    """And an ensemble's members, which no workload names."""
    wanted = {each.workload.model for each in WORKLOADS}
    for root in write_repositories(tmp_path, wanted):
        configs = {path.parent.name: path.read_text() for path in root.glob("*/config.pbtxt")}
        bare = {path.parent.parent.name for path in root.glob("*/1/model.onnx")}
        assert wanted <= configs.keys() | bare
        steps = [step.model_name for step in _config(configs["ensemble"]).ensemble_scheduling.step]
        assert len(steps) == 3
        assert set(steps) <= configs.keys()


def _config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (Workload("a", "grpc", "m", 4), ["--concurrency-range=4"]),
        (Workload("a", "grpc", "m", 0, rate=2000), ["--request-rate-range=2000", "--request-distribution=poisson"]),
    ],
)
def test_load_comes_from_so_many_clients_or_at_a_rate(workload: Workload, expected: list[str]) -> None:
    """At a rate requests do not wait for answers: a server that is fast gets no more of them than one that is slow."""
    assert _pace(workload) == expected


def _sample(batch: float) -> Sample:
    return Sample(100.0, 1.0, 2.0, batch, 10.0, 0.5)


def test_batches_are_compared_where_there_is_a_goal() -> None:
    """A batch size is no merit by itself: without a goal there is no ratio, and an empty one divides nothing."""
    workload = Workload("a", "grpc", "m", 1)
    judged = Result.of(Planned(workload, {"batch": at_least(0.95)}), [_sample(10)], [_sample(8)], [])
    assert judged.ratios["batch"].median == 1.25
    assert "batch" not in Result.of(Planned(workload, {}), [_sample(10)], [_sample(0)], []).ratios


def test_no_ratio_to_nothing() -> None:
    """A figure that is 0 in one of Triton's rounds has no ratio; the others have theirs."""
    planned = Planned(Workload("a", "grpc", "m", 1), {"batch": at_least(0.95)})
    ratios = Result.of(planned, [_sample(10)], [_sample(0)], []).ratios
    assert "batch" not in ratios
    assert ratios["throughput"].median == 1
