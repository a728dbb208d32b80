"""The comparison with frameworks alone: its cases, and the arithmetic of its lines."""

from __future__ import annotations

import pytest

from alone import CORES, Rate, Way, ways
from figures import Sample
from frameworks import CASES, FRAMEWORKS, Rounds, _line, chosen_cases
from networks import NETWORKS


def test_every_framework_runs_every_network() -> None:
    """Three networks, three frameworks, two concurrencies, each under a name of its own."""
    assert len({case.name for case in CASES}) == len(CASES) == len(NETWORKS) * len(FRAMEWORKS) * 2
    assert {case.concurrency for case in CASES} == {8, 32}


@pytest.mark.parametrize(("prefix", "count"), [("framework", 18), ("framework onnx", 6), ("framework torch cnn64", 2)])
def test_cases_run_for_who_asks(prefix: str, count: int) -> None:
    """By the beginning of their names; without a word none does."""
    assert len(chosen_cases([prefix])) == count
    assert not chosen_cases([])


@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_the_framework_alone_batches_no_more_than_clients_send(concurrency: int) -> None:
    """What nobody has sent cannot be batched by any server; all cores are used in every way."""
    found = ways(concurrency)
    assert found
    assert all(way.callers * way.rows <= max(concurrency, CORES) for way in found)
    assert all(way.callers * way.threads == CORES for way in found)


def test_a_line() -> None:
    """A round's ratio is the server's rate over the framework's less the client's share; the median round counts."""
    rounds = Rounds()
    for rate in (360.0, 450.0, 405.0):
        rounds.samples.append(Sample(rate, 1000, 2000, batch=4, cpu_us=2500, client_share=0.1))
        rounds.rates.append(Rate(500, 2000))
    line = _line(CASES[0], Way(2, 1, 4), rounds)
    assert line.value == pytest.approx(0.9)
    assert "(0.80 - 1.00)" in line.note
    assert "beyond the framework's 500 us/req (the framework's: 80%)" in line.note


def test_a_case_that_failed() -> None:
    """It is a line too, which does not meet its goal and says why."""
    line = _line(CASES[0], Way(2, 1, 4), Rounds(failures=["no answer"]))
    assert not line.goal.met(line.value)
    assert "no answer" in line.note
