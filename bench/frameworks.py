"""Conch beside each framework alone: what part of the machine reaches the model (`bench/compare.py --only framework`).

The Triton that pip can install has none of these backends. Each round measures the framework alone in its best way and
then the server, so that both see the machine in one mood; a ratio is taken within a round, and the median counts. What
the cores allow a server is the framework's rate, less the part of the CPU time that the load generator took.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alone import Rate, Way, best_way, measure, ways
from figures import FigureError, Sample, allowed, at_least
from load import Driver, Workload
from networks import NETWORKS, Network, write_networks
from plan import Plan
from report import Extra
from servers import Server, ServerError

CONCURRENCIES = (8, 32)
#: Framework -> the packages that it and its models need.
FRAMEWORKS = {
    "onnx": ("onnxruntime", "onnx", "torch", "openvino"),
    "openvino": ("openvino", "onnx", "torch"),
    "torch": ("torch", "onnx", "openvino"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One model in one framework, with so many requests at a time."""

    network: Network
    framework: str
    concurrency: int

    @property
    def name(self) -> str:
        return f"framework {self.framework} {self.network.name} c={self.concurrency}"

    @property
    def model(self) -> str:
        return f"{self.network.name}_{self.framework}"

    @property
    def workload(self) -> Workload:
        options = ["--input-data=zero"] if self.network.datatype == "INT64" else []
        if self.network.free:
            name = "INPUT__0" if self.framework == "torch" else self.network.input
            options.append(f"--shape={name}:{','.join(map(str, self.network.shape))}")
        return Workload(self.name, "grpc", self.model, self.concurrency, tuple(options))


@dataclass(slots=True)
class Rounds:
    """What the rounds of one case gave."""

    samples: list[Sample] = field(default_factory=list)
    rates: list[Rate] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


CASES = tuple(
    Case(network, framework, concurrency)
    for network in NETWORKS
    for framework in FRAMEWORKS
    for concurrency in CONCURRENCIES
)


def chosen_cases(prefixes: Sequence[str]) -> list[Case]:
    """Those whose names begin so: they run for who asks for them."""
    return [case for case in CASES if any(case.name.startswith(prefix) for prefix in prefixes)]


def run_cases(
    cases: Sequence[Case], conch: Sequence[str], driver: Driver, plan: Plan, say: Callable[[str], None]
) -> list[Extra]:
    lines = []
    for name in sorted({package for case in cases for package in FRAMEWORKS[case.framework]}):
        if importlib.util.find_spec(name) is None:
            raise ServerError(f"the networks are built with {name}, which is not installed: pip install {name}")
    for network in dict.fromkeys([case.network for case in cases]):
        with tempfile.TemporaryDirectory(prefix="conch-bench-") as place:
            write_networks(Path(place), network)
            for framework in dict.fromkeys([case.framework for case in cases if case.network is network]):
                mine = [case for case in cases if case.network is network and case.framework == framework]
                lines += _framework(mine, Path(place), conch, driver, plan, say)
    return lines


def _framework(
    cases: Sequence[Case], place: Path, conch: Sequence[str], driver: Driver, plan: Plan, say: Callable[[str], None]
) -> list[Extra]:
    """One model: its server is up while the framework runs alone, and does nothing then."""
    network, framework, model = cases[0].network, cases[0].framework, cases[0].model
    ways_of = {
        case: best_way(framework, place / model, network.example, plan.raw_seconds / 4, ways(case.concurrency))
        for case in cases
    }
    found = {case: Rounds() for case in cases}
    flags = ("--model-control-mode=explicit", f"--load-model={model}")
    with Server("Conch", conch, place, *flags) as server:
        for number in range(plan.rounds):
            for case in cases:
                try:
                    rate = measure(framework, place / model, network.example, plan.raw_seconds, ways_of[case])
                    sample = driver.run(case.workload, server, plan.seconds)
                except FigureError as error:
                    found[case].failures.append(str(error).partition("\n")[0])
                    continue
                found[case].rates.append(rate)
                found[case].samples.append(sample)
            say(f"framework {framework} {network.name}: round {number + 1} of {plan.rounds}")
    return [_line(case, ways_of[case], found[case]) for case in cases]


def _line(case: Case, way: Way, found: Rounds) -> Extra:
    if not found.samples:
        return Extra(case.name, 0.0, "", at_least(0.9), f"failed: {'; '.join(found.failures)}")
    pairs = list(zip(found.samples, found.rates, strict=True))
    parts = [each.throughput / allowed(rate.per_second, each.client_share) for each, rate in pairs]
    middle = {name: statistics.median(getattr(each, name) for each, _ in pairs) for name in Sample.__slots__}
    alone = statistics.median(rate.per_second for _, rate in pairs)
    beyond = statistics.median(each.cpu_us - rate.cpu_us for each, rate in pairs)
    # Of the server's CPU time: what the framework alone would have needed. Steadier than rates on a busy machine.
    share = statistics.median(rate.cpu_us / each.cpu_us for each, rate in pairs)
    note = (
        f"({min(parts):.2f} - {max(parts):.2f}) {middle['throughput']:,.0f}/s; alone {alone:,.0f}/s ({way}), client "
        f"{middle['client_share']:.2f}; batch {middle['batch']:.1f}, p50 {middle['p50_us'] / 1e3:.1f} ms, p99 "
        f"{middle['p99_us'] / 1e3:.1f} ms; server CPU beyond the framework's {beyond:.0f} us/req "
        f"(the framework's: {share:.0%})"
    )
    return Extra(case.name, statistics.median(parts), "", at_least(0.9), note)
