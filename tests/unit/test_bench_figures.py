"""The benchmark's parsing and arithmetic, on output captured from the real tools."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from figures import (
    Counters,
    FigureError,
    Load,
    Poll,
    Ratio,
    Sample,
    allowed,
    at_least,
    at_most,
    medians,
    order,
    parse_h2load,
    parse_perf_csv,
    parse_statistics,
    parse_wrk,
    ratio,
    sample,
    window,
)

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    "Avg latency,request/response,response wait\n"
)
PERF = HEADER + "16,10511.8,1,439,384,65,281,249,0,1349,1887,2067,2765,1420,1,1417\n"

WRK = """Running 2s test @ http://127.0.0.1:18100/v2/models/identity/infer
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   843.94us  253.02us   4.56ms   76.42%
    Req/Sec    18.82k     2.01k   26.82k    90.48%
  Latency Distribution
     50%  814.00us
     75%    0.96ms
     90%    1.12ms
     99%    1.63ms
  39263 requests in 2.10s, 9.70MB read
Requests/sec:  18696.62
Transfer/sec:      4.62MB
"""


def run(throughput: float = 100.0, p50: float = 1.0, p99: float = 2.0, cpu: float = 10.0) -> Sample:
    return Sample(throughput, p50, p99, batch=1.0, cpu_us=cpu, client_share=0.5)


def test_perf_analyzer_csv() -> None:
    """Throughput and percentiles are found by the names of their columns."""
    assert parse_perf_csv(PERF) == Load(10511.8, 1349, 2765)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "0 rows"),
        (HEADER, "0 rows"),
        (PERF + "32,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\n", "2 rows"),
        (PERF.replace("p99 latency", "p98 latency"), "p99 latency"),
        (PERF.replace("10511.8", "fast"), "usable"),
        (PERF.replace("10511.8", "0"), "completed no request"),
    ],
)
def test_perf_analyzer_csv_that_says_nothing(text: str, complaint: str) -> None:
    """A report without one usable row is an error, never a figure."""
    with pytest.raises(FigureError, match=complaint):
        parse_perf_csv(text)


def test_wrk_output() -> None:
    """wrk's latencies have units, which become microseconds."""
    assert parse_wrk(WRK) == Load(18696.62, 814.0, 1630.0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("  Non-2xx or 3xx responses: 134488\n", "Non-2xx or 3xx responses: 134488"),
        ("  Socket errors: connect 0, read 3, write 0, timeout 0\n", "read 3"),
    ],
)
def test_wrk_output_with_failed_requests(line: str, complaint: str) -> None:
    """A run in which requests failed is void: refusals are fast."""
    with pytest.raises(FigureError, match=complaint):
        parse_wrk(WRK.replace("Requests/sec", line + "Requests/sec"))


H2LOAD = """
finished in 4.00s, 92.50 req/s, 1.44GB/s
requests: 372 total, 372 started, 370 done, 370 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 370 2xx, 0 3xx, 0 4xx, 0 5xx
"""
LOG = "1795278097208984\t200\t300\n1795278097221437\t200\t100\n1795278097221439\t200\t200\n1\t0\t9\n"


def test_h2load_output() -> None:
    """The rate is h2load's, the latencies are those of its log; what was under way at the end does not count."""
    assert parse_h2load(H2LOAD, LOG) == Load(92.5, 200, 300, 3)


@pytest.mark.parametrize(
    ("text", "log", "complaint"),
    [
        (H2LOAD.replace("0 failed", "7 failed"), LOG, "7 failed"),
        (H2LOAD.replace("0 timeout", "7 timeout"), LOG, "7 timeout"),
        ("", LOG, "no completed"),
        (H2LOAD, "", "no completed"),
        (H2LOAD, LOG.replace("200", "500"), "no completed"),
    ],
)
def test_h2load_output_that_is_void(text: str, log: str, complaint: str) -> None:
    """Failed requests or none at all: no figure."""
    with pytest.raises(FigureError, match=complaint):
        parse_h2load(text, log)


def test_answers_that_are_no_success_make_a_run_void() -> None:
    """gRPC reports errors with status 200: the server's own counters must agree with the tool's."""
    with pytest.raises(FigureError, match="370 requests were answered, 12 of them with success"):
        sample(Load(92.5, 1, 1, 370), Counters(12, 12, 12), 1.0, 1.0, 4.0, 2)


@pytest.mark.parametrize("missing", ["Requests/sec", "50%", "99%"])
def test_wrk_output_that_is_cut_off(missing: str) -> None:
    """Output without a figure that is needed is an error."""
    kept = "\n".join(line for line in WRK.splitlines() if missing not in line)
    with pytest.raises(FigureError, match="wrk reports no"):
        parse_wrk(kept)


def test_statistics_are_summed_over_versions() -> None:
    """A model's counters are those of all its versions together."""
    version = {"inference_count": 8, "execution_count": 2, "inference_stats": {"success": {"count": 5, "ns": 1}}}
    assert parse_statistics({"model_stats": [version, version]}) == Counters(10, 16, 4)


def test_cpu_per_request_comes_from_the_servers_own_count() -> None:
    """Server CPU is divided by the requests that the server counts; the client's share by all cores' time."""
    done = Counters(5000, 10000, 2000) - Counters(1000, 2000, 400)
    got = sample(Load(1000.0, 10.0, 20.0), done, server_cpu=0.2, client_cpu=1.0, wall=2.0, cores=2)
    assert got == Sample(1000.0, 10.0, 20.0, batch=5.0, cpu_us=50.0, client_share=0.25)


def test_a_server_that_counted_nothing_has_no_figures() -> None:
    """No completed request is an error, not a division by zero."""
    with pytest.raises(FigureError, match="no completed request"):
        sample(Load(1, 1, 1), Counters(0, 0, 0), 1, 1, 1, 2)


def test_ratio_is_taken_within_rounds() -> None:
    """The median of ratios, not the ratio of medians: a slow moment of the machine hits both of a round."""
    rounds = [(run(200), run(100)), (run(30), run(10)), (run(500), run(500))]
    assert ratio(rounds, lambda s: s.throughput) == Ratio(2.0, 1.0, 3.0)


def test_ratio_of_no_rounds() -> None:
    """Without a completed round there is no ratio."""
    with pytest.raises(FigureError, match="no round"):
        ratio([], lambda s: s.throughput)


def test_medians_are_per_figure() -> None:
    """Each figure has its own median."""
    found = medians([run(1, 30), run(2, 10), run(3, 20)])
    assert (found["throughput"], found["p50_us"]) == (2, 20)


def test_goals_say_what_they_want() -> None:
    """A bound itself meets the goal, from either side."""
    assert [at_least(1.7).met(v) for v in (1.69, 1.7)] == [False, True]
    assert [at_most(0.6).met(v) for v in (0.6, 0.61)] == [True, False]
    assert (str(at_least(1.7)), str(at_most(0.35))) == ("≥ 1.7", "≤ 0.35")


def test_what_the_cores_allow() -> None:
    """The client's share of the CPU is not the server's to use."""
    assert allowed(1000.0, 0.25) == 750.0


@given(st.integers(1, 50))
def test_rounds_alternate(rounds: int) -> None:
    """Every round runs both once, and each goes first as often as the other (give or take one)."""
    turns = order(rounds)
    assert len(turns) == rounds
    assert all(sorted(turn) == [False, True] for turn in turns)
    firsts = [turn[0] for turn in turns]
    assert abs(2 * sum(firsts) - rounds) <= 1


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=9))
def test_ratio_lies_within_its_spread(values: list[tuple[float, float]]) -> None:
    """The median is one of the machine's moods, so it lies between the lowest and the highest round."""
    found = ratio([(run(a), run(b)) for a, b in values], lambda s: s.throughput)
    assert found.low <= found.median <= found.high


def test_a_decoupled_models_throughput_is_that_of_its_responses() -> None:
    """perf_analyzer has a second column for them."""
    text = HEADER.replace("Second,", "Second,Response Throughput,") + PERF.splitlines()[1].replace(",1,", ",4200,1,", 1)
    assert parse_perf_csv(text).throughput == 4200


def test_the_window_leaves_out_the_start_and_the_end() -> None:
    """It begins past the first tenth of the requests and ends before the counter stands still."""
    counts = [0, 0, 5, 100, 200, 300, 400, 410, 410, 410]
    polls = [Poll(at / 10, count, at / 20) for at, count in enumerate(counts)]
    first, last = window(polls)
    assert (first.requests, last.requests) == (100, 400)
    assert last.at - first.at == pytest.approx(0.3)


@given(st.lists(st.integers(0, 50), min_size=6, max_size=30))
def test_a_window_lies_within_the_load(steps: list[int]) -> None:
    """Whatever the counter does, the window is made of polls that saw progress, or there is none."""
    polls, count = [], 7
    for at, step in enumerate(steps):
        count += step
        polls.append(Poll(float(at), count, 0.0))
    try:
        first, last = window(polls)
    except FigureError:
        return
    assert polls[0].requests < first.requests < last.requests < polls[-1].requests
    assert first.at < last.at


def test_no_window_without_polls() -> None:
    """A run that was over before it was looked at is no measurement."""
    for polls in ([], [Poll(0.0, 0, 0.0), Poll(1.0, 10, 1.0), Poll(2.0, 10, 1.0)]):
        with pytest.raises(FigureError):
            window(polls)
