"""Turns measurements into a table to read and a JSON document to keep."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from figures import Goal, Ratio, Sample, allowed, at_least, at_most, medians, ratio
from plan import Planned

#: Figures in the order of the table: the attribute of `Sample`, a heading, and how a value is written.
FIGURES = (
    ("throughput", "infer/s", "{:,.0f}"),
    ("p50_us", "p50 us", "{:,.0f}"),
    ("p99_us", "p99 us", "{:,.0f}"),
    ("cpu_us", "server CPU us/req", "{:.1f}"),
    ("batch", "batch", "{:.1f}"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One workload, all rounds: medians by figure, ratios (ours over Triton's) by figure, and what went wrong."""

    name: str
    goals: dict[str, Goal]
    ours: dict[str, float]
    theirs: dict[str, float]
    ratios: dict[str, Ratio]
    rounds: list[tuple[Sample | None, Sample | None]]
    failures: list[str]

    @classmethod
    def of(
        cls,
        planned: Planned,
        ours: Sequence[Sample | None],
        theirs: Sequence[Sample | None],
        failures: Sequence[str],
    ) -> Self:
        rounds = list(zip(ours, theirs, strict=True))
        pairs = [(a, b) for a, b in rounds if a is not None and b is not None]
        # Batches are no merit by themselves: what they are good for shows in the other figures.
        asked = [name for name, _, _ in FIGURES if name != "batch" or name in planned.goals]
        # A short run may have used less than one tick of the CPU's clock.
        compared = [name for name in asked if all(getattr(theirs, name) for _, theirs in pairs)]
        return cls(
            planned.workload.name,
            dict(planned.goals),
            medians([a for a, _ in pairs]) if pairs else {},
            medians([b for _, b in pairs]) if pairs else {},
            {name: ratio(pairs, attrgetter(name)) for name in compared} if pairs else {},
            rounds,
            list(failures),
        )


@dataclass(frozen=True, slots=True)
class Extra:
    """A figure that is not a ratio to Triton."""

    name: str
    value: float
    unit: str
    goal: Goal
    note: str = ""

    @classmethod
    def idle_memory(cls, pss: float, rss: float) -> Self:
        note = f"PSS of the process tree, ten identity models, no request yet; RSS {rss:.0f} MB"
        return cls("idle memory", pss, "MB", at_most(100), note)

    @classmethod
    def ready(cls, seconds: float) -> Self:
        return cls("time until ready", seconds, "s", at_most(1), "ten identity models, median of 3 starts")


def extras_of(results: Sequence[Result], raw: tuple[float, str] | None) -> list[Extra]:
    """The real model against what the cores allow: raw ONNX Runtime x (1 - the load generator's share of the CPU)."""
    found = next((r for r in results if r.name.startswith("cnn") and r.ours), None)
    if raw is None or found is None:
        return []
    rate, how = raw
    lines = []
    for who, figures, goal in (("Conch", found.ours, at_least(0.85)), ("Triton", found.theirs, at_least(0))):
        limit = allowed(rate, figures["client_share"])
        note = (
            f"{figures['throughput']:,.0f}/s of {limit:,.0f}/s = {rate:,.0f}/s raw ({how}) "
            f"x (1 - {figures['client_share']:.2f} client)"
        )
        lines.append(Extra(f"cnn, part of what the cores allow: {who}", figures["throughput"] / limit, "", goal, note))
    return lines


def print_report(results: Sequence[Result], extras: Sequence[Extra]) -> None:
    console = Console(width=None if os.isatty(1) else 160)
    table = Table(title="Conch beside Triton: medians, and ratios Conch / Triton as median (lowest - highest round)")
    for heading in ("workload", "figure", "Triton", "Conch", "ratio", "goal", ""):
        table.add_column(heading, justify="left" if heading in ("workload", "figure", "") else "right")
    for result in results:
        for number, (name, heading, form) in enumerate(FIGURES):
            table.add_row(result.name if number == 0 else "", heading, *_cells(result, name, form))
        for failure in result.failures:
            table.add_row("", f"[red]failed: {failure}[/]")
        table.add_section()
    console.print(table)
    print_extras(extras)


def print_extras(extras: Sequence[Extra]) -> None:
    """Those, if there are any, and what the figures were taken on."""
    console = Console(width=None if os.isatty(1) else 160)
    if extras:
        more = Table(title="Beyond Triton")
        for heading in ("figure", "Conch", "goal", "", "how"):
            more.add_column(heading, justify="right" if heading in ("Conch", "goal") else "left")
        for extra in extras:
            verdict = _verdict(extra.goal, extra.value) if extra.goal.bound else ""
            goal = f"{extra.goal} {extra.unit}" if extra.goal.bound else ""
            more.add_row(extra.name, f"{extra.value:.2f} {extra.unit}", goal, verdict, extra.note)
        console.print(more)
    console.print(f"{_machine()}; figures from one run on a shared machine mean little, ratios more", highlight=False)


def _cells(result: Result, name: str, form: str) -> list[str]:
    if not result.ours:
        return ["-", "-", "no round completed", "", "[red]failed[/]"]
    row = [form.format(result.theirs[name]), form.format(result.ours[name])]
    found, goal = result.ratios.get(name), result.goals.get(name)
    row.append(f"{found.median:.2f} ({found.low:.2f} - {found.high:.2f})" if found else "")
    row += [str(goal), _verdict(goal, found.median)] if goal and found else ["", ""]
    return row


def _verdict(goal: Goal, value: float) -> str:
    return "[green]met[/]" if goal.met(value) else "[yellow]not met[/]"


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    return f"{len(os.sched_getaffinity(0))} cores, {model}, Python {platform.python_version()}, load {load:.1f}"


def as_json(results: Sequence[Result], extras: Sequence[Extra]) -> str:
    """Everything, every round included."""
    document: dict[str, Any] = {
        "machine": _machine(),
        "workloads": [
            {
                "name": r.name,
                "triton": r.theirs,
                "conch": r.ours,
                "ratios": {name: asdict(value) for name, value in r.ratios.items()},
                "goals": {
                    name: {
                        "goal": str(goal),
                        "met": goal.met(r.ratios[name].median) if name in r.ratios else False,
                    }
                    for name, goal in r.goals.items()
                },
                "rounds": [
                    {"conch": asdict(ours) if ours else None, "triton": asdict(theirs) if theirs else None}
                    for ours, theirs in r.rounds
                ],
                "failures": r.failures,
            }
            for r in results
        ],
        "extras": [
            {
                "name": e.name,
                "value": e.value,
                "unit": e.unit,
                "goal": str(e.goal),
                "met": e.goal.met(e.value),
                "note": e.note,
            }
            for e in extras
        ],
    }
    return json.dumps(document, indent=1) + "\n"
