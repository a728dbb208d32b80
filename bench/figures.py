"""The arithmetic of the comparison: what load generators print, ratios of rounds, and the goals they must meet."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class FigureError(ValueError):
    """A load generator's output does not say what it should."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator saw: requests per second, and latencies in microseconds."""

    throughput: float
    p50_us: float
    p99_us: float
    #: Requests that were answered; 0 where the tool does not tell.
    answered: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """A model's statistics, summed over its versions."""

    requests: int
    inferences: int
    executions: int

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(
            self.requests - earlier.requests,
            self.inferences - earlier.inferences,
            self.executions - earlier.executions,
        )


@dataclass(frozen=True, slots=True)
class Poll:
    """What a server had done at a moment: `at` and `cpu` in seconds, requests completed since its start."""

    at: float
    requests: int
    cpu: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one workload against one server.

    `cpu_us` is the server's CPU time per completed request, `batch` the average rows per execution, `client_share` the
    part of all the machine's CPU time that the load generator used.
    """

    throughput: float
    p50_us: float
    p99_us: float
    batch: float
    cpu_us: float
    client_share: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over Triton's, one per round: the median, and the lowest and highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a ratio (or figure) must be: at most, or at least, `bound`."""

    bound: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


def at_least(bound: float) -> Goal:
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_least=False)


#: What perf_analyzer calls the rate that counts: of a decoupled model that of its responses.
RESPONSES, INFERENCES = "Response Throughput", "Inferences/Second"


def parse_perf_csv(text: str) -> Load:
    """The one row of perf_analyzer's `-f` file. For a decoupled model the throughput is that of its responses."""
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) != 1:
        raise FigureError(f"perf_analyzer wrote {len(rows)} rows where one was expected")
    rate = RESPONSES if RESPONSES in rows[0] else INFERENCES
    try:
        throughput, p50, p99 = (float(rows[0][name]) for name in (rate, "p50 latency", "p99 latency"))
    except (KeyError, TypeError, ValueError) as error:
        raise FigureError(f"perf_analyzer's CSV has no usable {error}: {rows[0]}") from None
    if throughput <= 0 or p50 <= 0:
        raise FigureError(f"perf_analyzer completed no request: {rows[0]}")
    return Load(throughput, p50, p99)


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


def parse_wrk(text: str) -> Load:
    """What `wrk --latency` prints. Any answer outside 2xx and any broken connection makes the run void."""
    for complaint in (r"Non-2xx or 3xx responses: (\d+)", r"Socket errors: (.*)"):
        found = re.search(complaint, text)
        if found:
            raise FigureError(f"wrk reports {found[0]}")
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    if rate is None or float(rate[1]) <= 0:
        raise FigureError("wrk reports no completed requests")
    latencies = []
    for percent in ("50", "99"):
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\b", text, re.MULTILINE)
        if found is None:
            raise FigureError(f"wrk reports no {percent} % latency")
        latencies.append(float(found[1]) * _UNITS[found[2]])
    return Load(float(rate[1]), latencies[0], latencies[1])


def parse_h2load(text: str, log: str) -> Load:
    """What h2load prints, and its log: a line per request with its start, its status and its microseconds."""
    rate = re.search(r"^finished in [\d.]+m?s, ([\d.]+) req/s", text, re.MULTILINE)
    failed = re.search(r" ([1-9]\d*) (failed|errored|timeout)\b", text)
    if failed:
        raise FigureError(f"h2load reports{failed[0]}")
    rows = [line.split("\t") for line in log.splitlines()]
    # Status 0 is a request that was under way when the time was over.
    times = sorted(int(row[2]) for row in rows if len(row) == 3 and row[1] == "200")
    if rate is None or float(rate[1]) <= 0 or not times:
        raise FigureError("h2load reports no completed requests")
    return Load(float(rate[1]), times[len(times) // 2], times[len(times) * 99 // 100], len(times))


def parse_statistics(body: Mapping[str, Any]) -> Counters:
    """The body of `/v2/models/<m>/stats`."""
    models = body["model_stats"]
    return Counters(
        requests=sum(m["inference_stats"]["success"]["count"] for m in models),
        inferences=sum(m["inference_count"] for m in models),
        executions=sum(m["execution_count"] for m in models),
    )


def window(polls: Sequence[Poll]) -> tuple[Poll, Poll]:
    """The two polls between which the load was on: past its first tenth, and before the counter stood still.

    A load generator that shares the machine with the server may not get its own clock right; what the server has
    counted between two moments is true whatever the load generator believes.
    """
    if not polls:
        raise FigureError("the server was never polled")
    begin, end = polls[0].requests, polls[-1].requests
    started = [p for p in polls if p.requests >= begin + (end - begin) / 10 and p.requests > begin]
    running = [b for a, b in itertools.pairwise(started) if b.requests > a.requests]
    # The last poll that saw progress may have come after the end: the one before it did not.
    if len(running) < 3:
        raise FigureError(f"the load was seen by {len(running)} polls; at least three are needed")
    return started[0], running[-2]


def sample(load: Load, done: Counters, server_cpu: float, client_cpu: float, wall: float, cores: int) -> Sample:
    """Puts together one run. `server_cpu`, `client_cpu` and `wall` are seconds between the same two moments."""
    if done.requests <= 0:
        raise FigureError("the server's statistics count no completed request")
    if done.requests < load.answered:
        raise FigureError(f"{load.answered} requests were answered, {done.requests} of them with success")
    return Sample(
        throughput=load.throughput,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        batch=done.inferences / done.executions if done.executions else 0.0,
        cpu_us=server_cpu * 1e6 / done.requests,
        client_share=client_cpu / (wall * cores),
    )


def medians(samples: Sequence[Sample]) -> dict[str, float]:
    """Each figure's median over the rounds, by name."""
    return {name: statistics.median(getattr(s, name) for s in samples) for name in Sample.__slots__}


def ratio(pairs: Sequence[tuple[Sample, Sample]], figure: Callable[[Sample], float]) -> Ratio:
    """Of (ours, Triton's) pairs, one per round. A round is one moment of the machine, so it is divided first."""
    if not pairs:
        raise FigureError("no round was completed by both servers")
    ratios = [figure(ours) / figure(theirs) for ours, theirs in pairs]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def allowed(raw_per_second: float, client_share: float) -> float:
    """What the cores allow a server: the raw rate of the model on all of them, less what the load generator takes."""
    return raw_per_second * (1.0 - client_share)


def order(rounds: int) -> list[tuple[bool, ...]]:
    """For each round, whether ours goes first: A B, B A, A B ... so that a drift of the machine hits both alike."""
    return [(False, True) if number % 2 == 0 else (True, False) for number in range(rounds)]
