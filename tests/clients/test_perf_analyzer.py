"""NVIDIA's perf_analyzer, unmodified, in the modes that it has for Triton. Installed by `bench/triton/setup.sh`."""

from __future__ import annotations

import csv
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.server import Server

TOOL = Path(__file__).parent.parent.parent / ".cache" / "triton" / "perf_analyzer"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not TOOL.exists(), reason="perf_analyzer is not installed: bench/triton/setup.sh"),
]

SUM = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("Y", pb_utils.get_input_tensor_by_name(r, "X").as_numpy())]
            )
            for r in requests
        ]
"""
REPEAT = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            for _ in range(5):
                sender.send(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", x)]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
CONFIG = """
backend: "%s"
%s
input [ { name: "X" data_type: TYPE_%s dims: [ %s ] } ]
output [ { name: "Y" data_type: TYPE_%s dims: [ %s ] } ]
"""
MODELS = {
    "floats": ("python", "max_batch_size: 8\ndynamic_batching { }", "FP32", "16", SUM),
    "open": ("python", "max_batch_size: 8", "INT64", "-1, 4", SUM),
    "words": ("python", "", "STRING", "3", SUM),
    "word": ("python", "", "STRING", "1", SUM),
    "repeat": ("python", "model_transaction_policy { decoupled: true }", "FP32", "4", REPEAT),
    "direct": ("python", "max_batch_size: 4\nsequence_batching { direct { } }", "FP32", "1", SUM),
    "oldest": (
        "python",
        "max_batch_size: 4\nsequence_batching { oldest { max_candidate_sequences: 8 } }",
        "FP32",
        "1",
        SUM,
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("models")
    for name, (backend, more, kind, dims, source) in MODELS.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(CONFIG % (backend, more, kind, dims, kind, dims))
        if source:
            (root / name / "1" / "model.py").write_text(source)
    trace = tmp_path_factory.mktemp("trace") / "trace.json"
    flags = ("--allow-client-shm=true", f"--trace-config=triton,file={trace}")
    with Server(root, *flags) as server:
        yield server


def analyze(server: Server, place: Path, *options: str, model: str = "floats", count: int = 100) -> dict[str, str]:
    """Runs the tool until it has made `count` requests; the one row of its report. `-i` says which protocol."""
    report = place / "report.csv"
    report.unlink(missing_ok=True)
    url = server.grpc if "grpc" in options else server.http
    length = [f"--request-count={count}"] if count else []
    command = [str(TOOL), "-m", model, "-u", url, *length, "-f", str(report), "--verbose-csv", *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as late:
        # Whether the server has answered all it was asked, or the tool waits for itself.
        with urllib.request.urlopen(f"http://{server.http}/v2/models/{model}/stats") as answer:
            counted = answer.read()[:300]
        told = f"{' '.join(options)}: no end\n{late.stdout}\n{counted}\n{server.stacks()[-20_000:]}"
        raise AssertionError(told) from None
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(options)}: exit code {done.returncode}\n{said}\n{server.log[-2000:]}"
    rows = list(csv.DictReader(report.read_text().splitlines()))
    assert len(rows) == 1, said
    assert float(rows[0]["Inferences/Second"]) > 0, said
    return rows[0]


GRPC, HTTP = ("-i", "grpc"), ("-i", "http")
BOTH = pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])


@BOTH
@pytest.mark.parametrize("how", [("--sync",), ("--async",)], ids=["sync", "async"])
def test_calls_may_be_synchronous_or_not(server: Server, tmp_path: Path, protocol: tuple[str, ...], how: str) -> None:
    """And the report shows what the server counted: queue and compute times."""
    row = analyze(server, tmp_path, *protocol, *how, "--concurrency-range=4")
    assert row["Server Queue"]
    assert row["Server Compute Infer"]


@BOTH
def test_requests_may_come_at_a_rate(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """The load does not wait for answers."""
    analyze(server, tmp_path, *protocol, "--request-rate-range=50", "--request-distribution=poisson", count=60)


def test_intervals_may_come_from_a_file(server: Server, tmp_path: Path) -> None:
    """Microseconds between requests, one a line."""
    (tmp_path / "gaps").write_text("2000\n4000\n")
    analyze(server, tmp_path, *GRPC, f"--request-intervals={tmp_path / 'gaps'}", count=50)


@BOTH
def test_windows_of_time_become_stable(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """The mode without a number of requests: three windows that agree. Statistics are read around each."""
    analyze(
        server,
        tmp_path,
        *protocol,
        "--measurement-interval=200",
        "--stability-percentage=999",
        "--max-trials=3",
        count=0,
    )


def test_windows_of_requests_and_a_percentile(server: Server, tmp_path: Path) -> None:
    """The 95th percentile decides."""
    row = analyze(
        server, tmp_path, *GRPC, "--measurement-mode=count_windows", "--measurement-request-count=50",
        "--stability-percentage=999", "--percentile=95", count=0,
    )  # fmt: skip
    assert row["p95 latency"]


def test_streams_of_a_plain_model(server: Server, tmp_path: Path) -> None:
    """One response per request."""
    analyze(server, tmp_path, *GRPC, "--streaming", "--concurrency-range=4")


def test_streams_of_a_decoupled_model(server: Server, tmp_path: Path) -> None:
    """Five responses per request are counted as such."""
    row = analyze(server, tmp_path, *GRPC, "--streaming", model="repeat")
    assert float(row["Response Throughput"]) == pytest.approx(5 * float(row["Inferences/Second"]), rel=0.2)


@BOTH
def test_tensors_may_lie_in_shared_memory(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """Registered before, used for inputs and outputs, unregistered afterwards."""
    analyze(server, tmp_path, *protocol, "--shared-memory=system", "--output-shared-memory-size=4096")
    analyze(server, tmp_path, *protocol, "--shared-memory=none")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate", "none"])
def test_messages_may_be_compressed(server: Server, tmp_path: Path, algorithm: str) -> None:
    """By gRPC's own means."""
    analyze(server, tmp_path, *GRPC, f"--grpc-compression-algorithm={algorithm}", "--streaming", count=50)
    analyze(server, tmp_path, *GRPC, f"--grpc-compression-algorithm={algorithm}", count=50)


@pytest.mark.parametrize("into", ["binary", "json"])
@pytest.mark.parametrize("out", ["binary", "json"])
def test_tensors_may_be_json_or_binary(server: Server, tmp_path: Path, into: str, out: str) -> None:
    """Each direction for itself. (As JSON the tool can send one string alone.)"""
    options = (f"--input-tensor-format={into}", f"--output-tensor-format={out}")
    analyze(server, tmp_path, *HTTP, *options, count=50)
    analyze(server, tmp_path, *HTTP, *options, model="word", count=50)


@BOTH
def test_data_may_be_random_or_zero(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """Batches of several, and strings of a length."""
    analyze(server, tmp_path, *protocol, "--input-data=zero", "-b", "8", count=50)
    analyze(server, tmp_path, *protocol, "--input-data=random", "--string-length=20", model="words", count=50)


@BOTH
def test_open_sizes_need_a_shape(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """And get it from the command line."""
    analyze(server, tmp_path, *protocol, "--shape=X:5,4", "-b", "2", model="open", count=50)


@BOTH
def test_data_may_come_from_json(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """With the outputs that are expected, which the tool then checks."""
    values = [float(n) for n in range(16)]
    (tmp_path / "data.json").write_text(json.dumps({"data": [{"X": values}], "validation_data": [{"Y": values}]}))
    analyze(server, tmp_path, *protocol, f"--input-data={tmp_path / 'data.json'}", count=50)


def test_data_with_shapes_and_bytes(server: Server, tmp_path: Path) -> None:
    """Several entries in turn."""
    entries = [{"X": {"content": list(range(8)), "shape": [2, 4]}}, {"X": {"content": [1, 2, 3, 4], "shape": [1, 4]}}]
    (tmp_path / "data.json").write_text(json.dumps({"data": entries}))
    analyze(server, tmp_path, *GRPC, f"--input-data={tmp_path / 'data.json'}", model="open", count=50)


def test_data_may_come_from_files(server: Server, tmp_path: Path) -> None:
    """A folder with one raw file per input."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "X").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    analyze(server, tmp_path, *GRPC, f"--input-data={tmp_path / 'data'}", count=50)


@BOTH
def test_traces_may_be_asked_for(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """The tool changes the server's trace settings before it begins."""
    analyze(
        server, tmp_path, *protocol, "--trace-level=TIMESTAMPS", "--trace-rate=10", "--trace-count=3",
        "--log-frequency=0", count=50,
    )  # fmt: skip


def test_metrics_are_collected(server: Server, tmp_path: Path) -> None:
    """The metrics page is read while the load is on; a machine without a GPU has nothing to show there."""
    analyze(
        server, tmp_path, *GRPC, "--request-rate-range=50", "--collect-metrics", "--metrics-interval=100",
        f"--metrics-url={server.metrics}/metrics", count=60,
    )  # fmt: skip


@BOTH
def test_profiles_are_exported(server: Server, tmp_path: Path, protocol: tuple[str, ...]) -> None:
    """With the time of every request and response."""
    where = tmp_path / "profile.json"
    analyze(server, tmp_path, *protocol, f"--profile-export-file={where}", "-H", "x-user: ann", count=50)
    profile = json.loads(where.read_text())
    assert len(profile["experiments"][0]["requests"]) >= 50


def test_versions_may_be_named(server: Server, tmp_path: Path) -> None:
    """`-x`."""
    analyze(server, tmp_path, *HTTP, "-x", "1", count=50)


@BOTH
@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_sequences_may_be_sent(server: Server, tmp_path: Path, protocol: tuple[str, ...], model: str) -> None:
    """Each of the callers sends one sequence after the other."""
    options = ("--sequence-length=5", "--sequence-length-variation=20", "--sync", "--concurrency-range=4")
    analyze(server, tmp_path, *protocol, *options, "--sequence-id-range=100:110", model=model, count=60)


@pytest.mark.parametrize("model", ["direct", "oldest"])
def test_sequences_may_come_at_a_rate(server: Server, tmp_path: Path, model: str) -> None:
    """So many at a time, over one stream."""
    options = ("--num-of-sequences=4", "--request-rate-range=100", "--serial-sequences", "--sequence-length=5")
    analyze(server, tmp_path, *GRPC, "--streaming", "--async", *options, model=model, count=100)
