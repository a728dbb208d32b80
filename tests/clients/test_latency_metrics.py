"""`--metrics-config`: what the metrics page of a server process says of latencies, read as Prometheus reads it."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from support.python_models import model_source
from support.server import TRITONSERVER, Server
from support.until import until

pytestmark = pytest.mark.slow

TENSORS = """
input { name: "X" data_type: TYPE_FP32 dims: 1 }
output { name: "Y" data_type: TYPE_FP32 dims: 1 }
"""
#: Waits as many seconds as X says; an X below 0 is an error.
SLOW = model_source(
    """
    responses = []
    for request in requests:
        x = request.inputs()[0].as_numpy()
        seconds = float(x.flat[0])
        time.sleep(max(0, seconds))
        responses.append(answer(x) if seconds >= 0 else pb_utils.InferenceResponse(error=pb_utils.TritonError("no")))
    return responses
    """
)
#: Answers, waits as many seconds as X says, answers again; an X below 0 is no answer at all.
STREAM = model_source(
    """
    for request in requests:
        x = request.inputs()[0].as_numpy()
        sender = request.get_response_sender()
        if x.flat[0] >= 0:
            sender.send(answer(x))
            time.sleep(float(x.flat[0]))
            sender.send(answer(x))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    """
)
STEP = """
platform: "ensemble"
ensemble_scheduling {
  step {
    model_name: "%s" model_version: -1
    input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" }
  }
}
"""
BUCKETS = """
model_metrics {
  metric_control [
    {
      metric_identifier { family: "nv_inference_first_response_histogram_ms" }
      histogram_options { buckets: [ 0.001, 110, 60000 ] }
    }
  ]
}
"""
MODELS = {
    "plain": (SLOW, 'metric_tags { key: "team" value: "blue" }'),
    "fine": (SLOW, BUCKETS),
    "cached": (SLOW, "response_cache { enable: true }"),
    "rows": (SLOW, "max_batch_size: 2 sequence_batching { direct { } }"),
    "stream": (STREAM, "model_transaction_policy { decoupled: true }"),
    "chain": ("", STEP % "plain"),
    "streams": ("", STEP % "stream"),
}
CACHE = "--cache-config=local,size=1000000"
KINDS = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FIRST = "nv_inference_first_response_histogram_ms"
#: Of each model: requests answered well (those of ensembles' steps, too), and executed.
COUNTS = {"plain": 3, "fine": 1, "cached": 3, "rows": 2, "stream": 3, "chain": 1, "streams": 1}
EXECUTED = {**COUNTS, "cached": 2}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name, (source, config) in MODELS.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(('backend: "python"' if source else "") + TENSORS + config)
        if source:
            (root / name / "1" / "model.py").write_text(source)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """Everything has been asked something."""
    flags = ("summary_latencies=true", "summary_quantiles=0.5:0.05,0.9:0.01", "histogram_latencies=true")
    with Server(repository, CACHE, *[f"--metrics-config={flag}" for flag in flags], command=TRITONSERVER) as running:
        ask_all(running)
        yield running


def ask_all(server: Server) -> None:
    assert ask(server, "plain", 0.001) == 200
    assert ask(server, "plain", 0.12) == 200
    assert ask(server, "plain", -1) == 500
    for value in (0.001, 0.001, 0.002):
        assert ask(server, "cached", value) == 200
    assert ask(server, "chain", 0.003) == 200
    assert ask(server, "fine", 0.12) == 200
    for start, end in ((True, False), (False, True)):
        steering = {"sequence_id": 7, "sequence_start": start, "sequence_end": end}
        assert ask(server, "rows", 0, parameters=steering, shape=(1, 1)) == 200
    for model, value in (("stream", 0.12), ("stream", -1), ("streams", 0.001)):
        assert post(server, f"/v2/models/{model}/generate_stream", {"X": [value]}) == 200
    # What is counted is counted after the answer.
    until(lambda: by_model(server, "nv_inference_request_success") == COUNTS)
    until(lambda: by_model(server, "nv_inference_compute_infer_duration_us")["chain"] > 0)


def ask(
    server: Server,
    model: str,
    value: float,
    shape: tuple[int, ...] = (1,),
    parameters: Mapping[str, object] | None = None,
) -> int:
    tensor = {"name": "X", "shape": shape, "datatype": "FP32", "data": [value]}
    return post(server, f"/v2/models/{model}/infer", {"inputs": [tensor], "parameters": dict(parameters or {})})


def post(server: Server, path: str, body: object) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def page(server: Server) -> dict[str, Metric]:
    """The families by name."""
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    families = list(text_string_to_metric_families(text))
    found = {family.name: family for family in families}
    assert len(found) == len(families)
    return found


def by_model(server: Server, name: str, line: str | None = None) -> dict[str, float]:
    """The values of a family's lines of one kind (all, unless given), by their models."""
    family = page(server)[name]
    return {
        each.labels["model"]: each.value
        for each in family.samples
        if each.name.removesuffix("_total") == (line or name)
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_has_summaries(server: Server, kind: str) -> None:
    """Each request counts, with the time that the counter has too; those of models with a cache have no total."""
    name = f"nv_inference_{kind}_summary_us"
    counts = dict(COUNTS if kind in ("request", "queue") else EXECUTED)
    sums = by_model(server, f"nv_inference_{kind}_duration_us")
    if kind == "request":
        del counts["cached"], sums["cached"]
    assert by_model(server, name, f"{name}_count") == counts
    assert by_model(server, name, f"{name}_sum") == sums
    family = page(server)[name]
    assert family.type == "summary"
    for model in counts:
        quantiles = {
            each.labels["quantile"]: each.value
            for each in family.samples
            if each.labels["model"] == model and "quantile" in each.labels
        }
        assert list(quantiles) == ["0.5", "0.9"]
        assert 0 <= quantiles["0.5"] <= quantiles["0.9"] <= sums[model] * 1.01 + 1


def test_quantiles_are_microseconds(server: Server) -> None:
    """Of the three requests of a model one has waited for 120 ms."""
    (found,) = [
        each.value
        for each in page(server)["nv_inference_compute_infer_summary_us"].samples
        if (each.labels["model"], each.labels.get("quantile")) == ("plain", "0.9")
    ]
    assert found > 119_000


def test_models_with_a_cache(server: Server) -> None:
    """They alone have summaries of hits and misses."""
    for name, count in (("hit", 1), ("miss", 2)):
        family = f"nv_cache_{name}_summary_per_model"
        assert by_model(server, family, f"{family}_count") == {"cached": count}
        total = by_model(server, f"nv_cache_{name}_duration_per_model")
        assert by_model(server, family, f"{family}_sum") == total


def test_first_responses(server: Server) -> None:
    """A histogram of every model; what fails has no first response, nor has a stream that ends at once."""
    assert page(server)[FIRST].type == "histogram"
    assert by_model(server, FIRST, f"{FIRST}_count") == {**COUNTS, "stream": 2}
    buckets: dict[str, dict[str, float]] = {}
    for each in page(server)[FIRST].samples:
        if each.name == f"{FIRST}_bucket":
            buckets.setdefault(each.labels["model"], {})[each.labels["le"]] = each.value
    # One that its config gives other buckets: its request has waited for 120 ms.
    assert buckets.pop("fine") == {"0.001": 0, "110": 0, "60000": 1, "+Inf": 1}
    for model, counts in buckets.items():
        assert list(counts) == ["100", "500", "2000", "5000", "+Inf"]
        assert sorted(counts.values()) == list(counts.values())
        assert counts["+Inf"] == {**COUNTS, "stream": 2}[model]
    # One of its requests has waited for 120 ms before it was answered; no stream ends before its first response.
    assert buckets["plain"]["100"] <= 2
    whole = by_model(server, "nv_inference_request_duration_us")["stream"] / 1000
    assert by_model(server, FIRST, f"{FIRST}_sum")["stream"] <= whole


def test_labels(server: Server) -> None:
    """The same as those of counters, with one more."""
    (quantile, *_) = [
        each.labels
        for each in page(server)["nv_inference_queue_summary_us"].samples
        if each.labels["model"] == "plain" and "quantile" in each.labels
    ]
    assert quantile == {"_team": "blue", "model": "plain", "version": "1", "quantile": "0.5"}


def test_nothing_is_added_unasked(repository: Path) -> None:
    """Without settings there are counters alone."""
    with Server(repository, CACHE) as running:
        names = page(running)
        assert ask(running, "plain", 0) == 200
    assert not [each for each in names if "summary" in each or "first_response" in each]
    assert {f"nv_inference_{kind}_duration_us" for kind in KINDS} < set(names)


def test_without_counters(repository: Path) -> None:
    """Counters of durations go, those of requests stay and count."""
    flags = ("counter_latencies=false", "summary_latencies=True")
    with Server(repository, CACHE, *[f"--metrics-config={flag}" for flag in flags]) as running:
        assert ask(running, "plain", 0) == 200
        until(lambda: by_model(running, "nv_inference_request_success")["plain"] == 1)
        names = page(running)
        summary = names["nv_inference_request_summary_us"]
    assert not [
        each
        for each in names
        if "duration_us" in each or (each.startswith("nv_cache") and "per_model" in each and "summary" not in each)
    ]
    quantiles = [each for each in summary.samples if "quantile" in each.labels and each.labels["model"] == "plain"]
    assert [each.labels["quantile"] for each in quantiles] == ["0.5", "0.9", "0.95", "0.99", "0.999"]
    idle = [each.value for each in summary.samples if "quantile" in each.labels and each.labels["model"] == "rows"]
    assert all(map(math.isnan, idle))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("summaries=true", "unknown setting 'summaries', expected one of counter_latencies,"),
        ("summary_latencies=yes", "summary_latencies must be true or false, got: yes"),
        ("summary_quantiles=0.5", "summary_quantiles must be pairs <quantile>:<error>"),
        ("summary_quantiles=2:0.1", "summary_quantiles must be pairs <quantile>:<error>"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing(repository: Path, setting: str, text: str) -> None:
    """The server does not start, and says what it would take."""
    refused = Server(repository, f"--metrics-config={setting}")
    try:
        assert refused.wait() == 1
        assert f"error: creating server: Invalid argument - --metrics-config: {text}" in refused.log
        assert "loading" not in refused.log
    finally:
        refused.close()
