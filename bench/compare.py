"""Conch beside the real Triton on this machine: one run, alternating rounds, medians of ratios (`make bench`).

Both servers hold the same repository and are driven by the same tools in turn, A B B A: a ratio is taken within a
round, where the machine was in one mood, and the median of the rounds is reported with its spread. A run that fails
is repeated once; if it fails again it is reported as failed and its round counts for neither server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from figures import FigureError, Sample, order
from frameworks import CASES, chosen_cases, run_cases
from load import Driver, Workload
from models import IMAGE_SHAPE
from plan import WORKLOADS, Plan, Planned
from raw import best_rate
from report import Extra, Result, as_json, extras_of, print_extras, print_report
from repositories import write_identities, write_repositories
from servers import Server, ServerError

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = Console(stderr=True)


@dataclass(slots=True)
class Rounds:
    """What became of one workload: a sample of each server per round, None where it failed, and why."""

    workload: Workload
    ours: list[Sample | None] = field(default_factory=list)
    theirs: list[Sample | None] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    triton, perf_analyzer = options.triton / "tritonserver", options.triton / "perf_analyzer"
    if not triton.exists():
        CONSOLE.print(f"Triton is not installed in {options.triton}: run bench/triton/setup.sh, or pass --triton DIR")
        return 2
    plan = Plan.quick() if options.quick else Plan()
    if options.rounds:
        plan = plan.with_rounds(options.rounds)
    chosen = [p for p in WORKLOADS if not options.only or any(p.workload.name.startswith(o) for o in options.only)]
    cases = chosen_cases(options.only or [])
    if not chosen and not cases:
        names = [*(p.workload.name for p in WORKLOADS), *(case.name for case in CASES)]
        CONSOLE.print(f"--only {options.only} matches none of: {', '.join(names)}")
        return 2
    try:
        results: list[Result] = []
        raw = None
        for flags in dict.fromkeys([p.workload.flags for p in chosen]):
            group = [p for p in chosen if p.workload.flags == flags]
            found, raw_here = _compare(group, flags, [str(triton)], options.conch.split(), Driver(perf_analyzer), plan)
            results += found
            raw = raw or raw_here
        extras: list[Extra] = extras_of(results, raw)
        if cases:
            driver = Driver(perf_analyzer)
            extras += run_cases(
                cases, options.conch.split(), driver, plan, lambda text: CONSOLE.print(text, highlight=False)
            )
        if not options.only:
            extras += _idle(options.conch.split())
    except ServerError as failure:
        CONSOLE.print(f"[bold red]a server failed[/]: {failure}", markup=True, highlight=False)
        return 1
    if results:
        print_report(results, extras)
    else:
        print_extras(extras)
    if options.json:
        options.json.write_text(as_json(results, extras))
        CONSOLE.print(f"written: {options.json}")
    return 0


def _compare(
    chosen: Sequence[Planned],
    flags: Sequence[str],
    triton: Sequence[str],
    conch: Sequence[str],
    driver: Driver,
    plan: Plan,
) -> tuple[list[Result], tuple[float, str] | None]:
    """Workloads that share a pair of servers, and how fast ONNX Runtime runs the real model, if it is among them."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conch-bench-")))
        ours_at, theirs_at = write_repositories(place, {p.workload.model for p in chosen})
        theirs = stack.enter_context(Server("Triton", triton, theirs_at, *flags, timeout=120))
        ours = stack.enter_context(Server("Conch", conch, ours_at, *flags))
        rounds = [Rounds(p.workload) for p in chosen]
        _measure(chosen, rounds, ours, theirs, driver, plan)
        results = [Result.of(p, r.ours, r.theirs, r.failures) for p, r in zip(chosen, rounds, strict=True)]
        raw = None
        at_once = [p.workload.concurrency for p in chosen if p.workload.model == "cnn"]
        if at_once:
            CONSOLE.print("what the cores allow: ONNX Runtime by itself")
            model = ours_at / "cnn" / "1" / "model.onnx"
            raw = best_rate(model, IMAGE_SHAPE, plan.raw_seconds, max(at_once))
        return results, raw


def _measure(
    chosen: Sequence[Planned], all_rounds: Sequence[Rounds], ours: Server, theirs: Server, driver: Driver, plan: Plan
) -> None:
    for planned, rounds in zip(chosen, all_rounds, strict=True):
        workload, seconds = planned.workload, plan.seconds * planned.share
        if plan.warm_seconds:
            for server in (theirs, ours):
                _attempt(workload, server, driver, plan.warm_seconds, [])
        for number, turn in enumerate(order(plan.rounds)):
            for is_ours in turn:
                sample = _attempt(workload, ours if is_ours else theirs, driver, seconds, rounds.failures)
                (rounds.ours if is_ours else rounds.theirs).append(sample)
            CONSOLE.print(f"{workload.name}: round {number + 1} of {plan.rounds}", highlight=False)


def _attempt(workload: Workload, server: Server, driver: Driver, seconds: float, failures: list[str]) -> Sample | None:
    """Four tries, since perf_analyzer does not always end when it has been answered; every failure is kept."""
    for number, attempt in enumerate(("first try", "second try", "third try", "fourth try")):
        try:
            return driver.run(workload, server, seconds)
        except (FigureError, ServerError, OSError) as error:
            failures.append(f"{server.name}, {attempt}: {str(error).partition(chr(10))[0]}")
            server.revive(anyway=number > 0)
    return None


def _idle(conch: Sequence[str]) -> list[Extra]:
    """Memory and start-up time of Conch with ten models of the built-in identity backend."""
    with tempfile.TemporaryDirectory(prefix="conch-bench-") as place:
        write_identities(Path(place), 10)
        ready = []
        for _ in range(3):
            with Server("Conch", conch, Path(place)) as server:
                ready.append(server.ready_seconds)
                pss, rss = server.memory()
    return [Extra.idle_memory(pss, rss), Extra.ready(sorted(ready)[1])]


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="rounds per workload")
    parser.add_argument("--quick", action="store_true", help="a coarse run of less than two minutes")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PREFIX",
        help="workloads whose name starts so; repeatable. `framework` are those beside each framework alone",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, every round, to FILE")
    parser.add_argument("--triton", type=Path, default=ROOT / ".cache" / "triton", help="where Triton is installed")
    parser.add_argument(
        "--conch",
        default=str(Path(sys.executable).parent / "tritonserver"),
        help="the command that takes Triton's flags and is compared with it",
    )
    options = parser.parse_args(argv)
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
