"""What the statistics say of models that answer more than once."""

from __future__ import annotations

import json

from conch.observe.stats import RESPONSES, Execution, ModelStats
from conch.protocol.v2 import answers
from support.plane import echo_plane
from support.requests import make_form, make_request


def test_responses_are_shown_by_their_index() -> None:
    """Each index has all six durations; a response counts for one of success, fail, empty_response and cancel."""
    plane, registry = echo_plane()
    stats = registry.versions["identity"].stats
    stats.responded([(0, "success", 10, 3), (1, "fail", 20, 4), (2, "empty_response", 30, 0), (10, "cancel", 40, 0)])
    stats.responded([(0, "success", 1, 1)])
    shown = json.loads(answers.statistics(plane.statistics("identity", "")))["model_stats"][0]["response_stats"]

    def durations(**found: tuple[int, int]) -> dict[str, dict[str, int]]:
        names = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
        return {name: dict(zip(("count", "ns"), found.get(name, (0, 0)), strict=True)) for name in names}

    assert shown == {
        "0": durations(compute_infer=(2, 11), compute_output=(2, 4), success=(2, 15)),
        "1": durations(compute_infer=(1, 20), compute_output=(1, 4), fail=(1, 24)),
        "2": durations(compute_infer=(1, 30), empty_response=(1, 30)),
        "10": durations(cancel=(1, 40)),
    }


def test_models_that_answer_once_have_none() -> None:
    """Nothing is shown that is not counted."""
    plane, _ = echo_plane()
    assert not plane.statistics("identity", "").model_stats[0].response_stats


def test_endless_streams_do_not_fill_the_memory() -> None:
    """Beyond a number of indices, responses share the counters of the last."""
    stats = ModelStats()
    stats.responded([(index, "success", 1, 1) for index in range(RESPONSES + 10)])
    assert len(stats.responses) == RESPONSES
    assert stats.responses[RESPONSES - 1].success.count == 11


def test_a_request_counts_when_its_final_response_comes() -> None:
    """Queue and compute times are those of its execution; one that is still running counts as computing."""
    stats = ModelStats()
    first, second = make_request(make_form(3)), make_request(make_form(2))
    first.queued_ns = second.queued_ns = 10
    execution = Execution(100)
    stats.answered(first, execution, 250)
    assert (stats.inferences, stats.executions, stats.success.ns) == (3, 0, 250)
    assert (stats.queue.ns, stats.compute_infer.ns, stats.compute_output.ns) == (90, 150, 0)
    stats.ran([first, second], execution, 120, 300, 310)
    assert (stats.success.count, stats.executions, stats.batches[5].compute_infer.ns) == (1, 1, 180)
    stats.answered(second, execution, 1000)
    assert (stats.success.ns, stats.compute_input.ns, stats.compute_infer.ns, stats.compute_output.ns) == (
        1250, 20, 330, 10,
    )  # fmt: skip
    assert (stats.inferences, stats.success.count, stats.queue.count) == (5, 2, 2)
