"""Drives a server with NVIDIA's perf_analyzer or with wrk, and measures what server and load generator spend."""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from conch.pb import grpc_service_pb2 as pb
from figures import FigureError, Load, Sample, parse_h2load, parse_perf_csv, parse_wrk, sample, window
from servers import Server

CORES = len(os.sched_getaffinity(0))


#: From this concurrency on perf_analyzer is given a number of requests instead of a time, and the server is watched.
_HIGH = 64
#: Requests per second to begin with, for runs that are measured by their number.
_RATE = 3000
#: And more than any server of these manages.
_MOST = 200_000


@dataclass(frozen=True, slots=True)
class Workload:
    """One load: the tool and protocol, model and concurrency.

    `grpc` and `http` are perf_analyzer's, `json` is wrk's, `wrk sequences` too (HTTP with tensors as bytes, each
    connection has a sequence of 20 requests after the other); `h2load` and `h2load --h1` are gRPC and HTTP with
    tensors as bytes by a client that does nothing with what it sends and gets.
    """

    name: str
    tool: str
    model: str
    concurrency: int
    #: More options of perf_analyzer.
    options: tuple[str, ...] = ()
    #: A JSON body, for wrk.
    body: str = ""
    #: For h2load: the shape of the FP32 tensor that is sent.
    shape: tuple[int, ...] = ()
    #: Connections that do nothing, beside those that do.
    idle: int = 0
    #: Of a decoupled model: responses per request. Throughput is then in responses.
    responses: int = 0
    #: Requests per second that perf_analyzer sends whether answers come or not; 0: `concurrency` at a time.
    rate: int = 0
    #: Of both servers; workloads of the same flags share the servers.
    flags: tuple[str, ...] = ()


class Driver:
    """Runs workloads against servers, and remembers how fast each was."""

    def __init__(self, perf_analyzer: Path) -> None:
        self._perf_analyzer = perf_analyzer
        self._rates: dict[tuple[str, str], float] = {}

    def run(self, workload: Workload, server: Server, seconds: float) -> Sample:
        """One measurement of about `seconds`. Raises FigureError when the tool did not complete it."""
        server.check()
        if workload.responses or (workload.tool in {"grpc", "http"} and workload.concurrency >= _HIGH):
            return self._by_count(workload, server, seconds)
        with idle_connections(server, workload.idle):
            return self._measured(
                workload,
                server,
                lambda: self._drive(workload, server, seconds),
            )

    def _drive(self, workload: Workload, server: Server, seconds: float) -> Load:
        if workload.tool == "json":
            return _wrk(workload, server, seconds)
        if workload.tool == "wrk sequences":
            return _sequences(workload, server, seconds)
        if workload.tool.startswith("h2load"):
            return _h2load(workload, server, seconds)
        return _perf(workload, server, self._perf_analyzer, seconds, _by_time(seconds))

    def _measured(self, workload: Workload, server: Server, drive: Callable[[], Load]) -> Sample:
        before, cpu = server.counters(workload.model), server.cpu_seconds()
        client, started = _client_cpu(), time.monotonic()
        load = drive()
        wall = time.monotonic() - started
        done = server.counters(workload.model) - before
        return sample(load, done, server.cpu_seconds() - cpu, _client_cpu() - client, wall, CORES)

    def _by_count(self, workload: Workload, server: Server, seconds: float) -> Sample:
        """Throughput and CPU time by the server's own counters while a number of requests is made.

        The tool's measuring thread starves at high concurrency and at high rates of responses: its time is never over,
        and its rate is not to be trusted. The number is what the server did in `seconds` the last time; the first run
        finds it.
        """
        key = (server.name, workload.name)
        each = workload.responses or 1
        while True:
            count = int(self._rates.get(key, _RATE / each) * seconds) + 1
            with server.watch(workload.model) as watch:
                found = self._measured(
                    workload,
                    server,
                    lambda n=count: _perf(workload, server, self._perf_analyzer, seconds, [f"--request-count={n}"]),  # type: ignore[misc]
                )
            try:
                first, last = window(watch.polls)
            except FigureError:
                if count > _MOST * seconds / each:
                    raise
                self._rates[key] = self._rates.get(key, _RATE / each) * 3
                continue
            done = last.requests - first.requests
            rate = self._rates[key] = done / (last.at - first.at)
            if count < rate * seconds / 2:
                continue
            return replace(found, throughput=rate * each, cpu_us=(last.cpu - first.cpu) * 1e6 / done)


@contextmanager
def idle_connections(server: Server, count: int) -> Iterator[None]:
    """`count` HTTP connections that have asked one question each and then say nothing more."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=10)
            stack.callback(connection.close)
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise FigureError(f"{server.name} does not serve {count} idle connections")
        yield


def _client_cpu() -> float:
    """CPU seconds of all finished children: the load generators, as servers have not finished."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _by_time(seconds: float) -> list[str]:
    # Three windows are merged into the result; with stability out of the way it is always the first three.
    return [f"--measurement-interval={int(seconds * 1000 / 3)}", "--stability-percentage=999", "--max-trials=3"]


def _perf(workload: Workload, server: Server, perf_analyzer: Path, seconds: float, length: Sequence[str]) -> Load:
    # At high concurrency the tool's measuring thread starves and a time is never over, whichever server it drives:
    # there `length` is a number of requests.
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
                *(["--async"] if workload.tool == "grpc" and "--streaming" not in workload.options else []),
                *_pace(workload),
                *length,
                *workload.options,
                "-f",
                str(report),
                "--verbose-csv",
            ],
            seconds,
        )
        if not report.exists():
            raise FigureError("perf_analyzer wrote no report")
        return parse_perf_csv(report.read_text())


def _pace(workload: Workload) -> list[str]:
    if workload.rate:
        return [f"--request-rate-range={workload.rate}", "--request-distribution=poisson"]
    return [f"--concurrency-range={workload.concurrency}"]


def _wrk(workload: Workload, server: Server, seconds: float) -> Load:
    script = f"""
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = {json.dumps(workload.body)}
"""
    return _run_wrk(script, "-t1", workload, server, seconds)


#: A thread for each connection, so that each has a sequence of its own. The first request that a thread makes is not
#: sent by all of them: it is a sequence for itself.
_SEQUENCES = """
local threads = 0
function setup(thread) threads = threads + 1; thread:set("number", threads) end
function init(args) step, round = 0, 0 end
function request()
  local id = number + %(connections)d * round
  local first, last = step <= 1, step == 0 or step == 20
  if last then step, round = 1, round + 1 else step = step + 1 end
  local head = string.format(
    '{"parameters":{"sequence_id":%%d,"sequence_start":%%s,"sequence_end":%%s,"binary_data_output":true},' ..
    '"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,16],"parameters":{"binary_data_size":64}}]}',
    id, tostring(first), tostring(last))
  wrk.headers["Inference-Header-Content-Length"] = #head
  return wrk.format("POST", "/v2/models/%(model)s/infer", nil, head .. string.rep("\\0", 64))
end
"""


def _sequences(workload: Workload, server: Server, seconds: float) -> Load:
    script = _SEQUENCES % {"connections": workload.concurrency, "model": workload.model}
    return _run_wrk(script, f"-t{workload.concurrency}", workload, server, seconds)


def _run_wrk(script: str, threads: str, workload: Workload, server: Server, seconds: float) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        url = f"http://{server.url('http')}/v2/models/{workload.model}/infer"
        timing = [f"-c{workload.concurrency}", f"-d{max(1, round(seconds))}s", "--timeout=20s", "--latency"]
        return parse_wrk(_call(["wrk", threads, *timing, "-s", file.name, url], seconds))


def _h2load(workload: Workload, server: Server, seconds: float) -> Load:
    tensor = bytes(4 * math.prod(workload.shape))
    head = {
        "inputs": [
            {
                "name": "INPUT0",
                "datatype": "FP32",
                "shape": workload.shape,
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    with tempfile.TemporaryDirectory() as directory:
        body, log = Path(directory) / "body", Path(directory) / "log"
        if workload.tool == "h2load":
            message = pb.ModelInferRequest(model_name=workload.model, raw_input_contents=[tensor])
            message.inputs.add(name="INPUT0", datatype="FP32", shape=workload.shape)
            raw = message.SerializeToString()
            body.write_bytes(b"\0" + len(raw).to_bytes(4, "big") + raw)
            how = ["-Hcontent-type: application/grpc", "-Hte: trailers"]
            url = f"http://{server.url('grpc')}/inference.GRPCInferenceService/ModelInfer"
        else:
            text = json.dumps(head).encode()
            body.write_bytes(text + tensor)
            how = ["--h1", f"-HInference-Header-Content-Length: {len(text)}"]
            url = f"http://{server.url('http')}/v2/models/{workload.model}/infer"
        load = [f"-c{workload.concurrency}", f"-D{max(1, round(seconds))}", f"-d{body}", f"--log-file={log}"]
        said = _call(["h2load", *load, *how, url], seconds)
        return parse_h2load(said, log.read_text())


def _call(command: Sequence[str], seconds: float) -> str:
    patience = seconds * 3 + 15
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise FigureError(f"{Path(command[0]).name} hung: no result after {patience:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise FigureError(f"{Path(command[0]).name} left with {done.returncode}: {' / '.join(said[-3:])}")
    return done.stdout
