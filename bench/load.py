"""Drives a server with NVIDIA's perf_analyzer or with wrk, and measures what server and load generator spend."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import FigureError, Load, Sample, parse_perf_csv, parse_wrk, sample
from servers import Server

CORES = len(os.sched_getaffinity(0))


#: Requests per second of a run, for runs that are measured by their number.
_MANY = 20_000


@dataclass(frozen=True, slots=True)
class Workload:
    """One load: the tool and protocol (`grpc` and `http` by perf_analyzer, `json` by wrk), model and concurrency."""

    name: str
    tool: str
    model: str
    concurrency: int
    #: `--shape` of perf_analyzer, for inputs with variable dimensions.
    shape: str = ""
    #: A JSON body, for wrk.
    body: str = ""


def run(workload: Workload, server: Server, perf_analyzer: Path, seconds: float) -> Sample:
    """One measurement of about `seconds`. Raises FigureError when the tool did not complete it."""
    server.check()
    before, cpu, client, started = (
        server.counters(workload.model),
        server.cpu_seconds(),
        _client_cpu(),
        time.monotonic(),
    )
    load = (
        _wrk(workload, server, seconds) if workload.tool == "json" else _perf(workload, server, perf_analyzer, seconds)
    )
    wall = time.monotonic() - started
    return sample(
        load,
        server.counters(workload.model) - before,
        server.cpu_seconds() - cpu,
        _client_cpu() - client,
        wall,
        CORES,
    )


def _client_cpu() -> float:
    """CPU seconds of all finished children: the load generators, as servers have not finished."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _perf(workload: Workload, server: Server, perf_analyzer: Path, seconds: float) -> Load:
    # Three windows are merged into the result; with stability out of the way it is always the first three. At high
    # concurrency the tool's measuring thread starves and its time is never over, whichever server it drives: there a
    # number of requests is asked for instead, and its throughput is then exact to about a second of the run.
    length = (
        [f"--request-count={int(seconds * _MANY)}"]
        if workload.concurrency >= 64
        else [f"--measurement-interval={int(seconds * 1000 / 3)}", "--stability-percentage=999", "--max-trials=3"]
    )
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.csv"
        _call(
            [
                str(perf_analyzer),
                "-m",
                workload.model,
                "-i",
                workload.tool,
                "-u",
                server.url(workload.tool),
                # HTTP is synchronous unless told otherwise.
                *(["--async"] if workload.tool == "grpc" else []),
                f"--concurrency-range={workload.concurrency}",
                *length,
                *([f"--shape={workload.shape}"] if workload.shape else []),
                "-f",
                str(report),
                "--verbose-csv",
            ],
            seconds,
        )
        if not report.exists():
            raise FigureError("perf_analyzer wrote no report")
        return parse_perf_csv(report.read_text())


def _wrk(workload: Workload, server: Server, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            'wrk.method = "POST"\n'
            'wrk.headers["Content-Type"] = "application/json"\n'
            f"wrk.body = {json.dumps(workload.body)}\n"
        )
        script.flush()
        url = f"http://{server.url('http')}/v2/models/{workload.model}/infer"
        return parse_wrk(
            _call(
                [
                    "wrk",
                    "-t1",
                    f"-c{workload.concurrency}",
                    f"-d{max(1, round(seconds))}s",
                    "--latency",
                    "-s",
                    script.name,
                    url,
                ],
                seconds,
            )
        )


def _call(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds * 4 + 20, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise FigureError(f"{Path(command[0]).name} hung: no result after {seconds * 4 + 20:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FigureError(f"{Path(command[0]).name} left with {done.returncode}: {' / '.join(said[-3:])}")
    return done.stdout
