"""The metrics page and the statistics of models on several GPUs, which are made up: models run, GPUs do nothing."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import conch
from conch.config.server import ServerOptions
from conch.gpus import Gpus
from conch.observe.gpu import Nvml
from support.gpu import FakeNvml, gpu
from support.server import free_ports
from support.until import until

pytestmark = pytest.mark.slow

TENSORS = 'input { name: "x" data_type: TYPE_INT32 dims: [ 1 ] } output { name: "y" data_type: TYPE_INT32 dims: [ 1 ] }'
GROUPS = "instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]"
#: Says which GPU it is on (-1: none), after a moment; with an x below 0 it fails, and the error ends with that number.
WHERE = """
import time
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else -1

    def execute(self, requests):
        time.sleep(0.02)
        return [self.answer(pb.get_input_tensor_by_name(request, "x").as_numpy()[0]) for request in requests]

    def answer(self, x):
        if x < 0:
            return pb.InferenceResponse(error=pb.TritonError(f"failed on {self.device}"))
        return pb.InferenceResponse([pb.Tensor("y", np.array([self.device], np.int32))])
"""
MODELS = {
    "both": GROUPS,
    "cpu": "instance_group [ { kind: KIND_CPU } ]",
    "mixed": GROUPS.replace("} ]", "}, { count: 2 kind: KIND_CPU } ]"),
}
NAMES = {0: f"GPU-{gpu(0).uuid}", 1: f"MIG-{gpu(1).uuid}"}
LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[conch.Server]:
    """With two GPUs, the second of which is a part that MIG makes."""
    for name, groups in MODELS.items():
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "config.pbtxt").write_text(f'backend: "python" {TENSORS} {groups}')
        (tmp_path / name / "1" / "model.py").write_text(WHERE)

    def both(options: ServerOptions) -> Gpus:
        return Gpus(options, lambda: [gpu(0), gpu(1)])

    monkeypatch.setattr("conch.app.Gpus", both)
    monkeypatch.setattr("conch.gpus.open_nvml", lambda gpus: Nvml(FakeNvml(*NAMES.values()), gpus))
    (port,) = free_ports(1)
    settings = ["histogram_latencies=true", "summary_latencies=true"]
    with conch.Server(tmp_path, metrics_port=port, metrics_config=settings) as running:
        yield running


def scrape(server: conch.Server, metric: str, model: str) -> dict[str, float]:
    """Values by name of the GPU, empty for the model's own series; those with other labels are added up."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    found: dict[str, float] = {}
    for name, text, value in LINE.findall(page):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', text))
        if name == metric and labels.get("model") == model:
            of = labels.get("gpu_uuid", "")
            found[of] = found.get(of, 0) + float(value)
    return found


def ask(server: conch.Server, model: str, count: int) -> Counter[int]:
    """How many of so many answers each GPU gave; every fourth request fails, and counts as 100 + its GPU."""

    def one(number: int) -> int:
        try:
            answer = server.model(model).infer({"x": np.array([-1 if number % 4 == 0 else 1], np.int32)})
        except conch.InferError as error:
            return 100 + int(error.message.rpartition(" ")[2])
        return int(answer["y"][0])

    with ThreadPoolExecutor(8) as clients:
        return Counter(clients.map(one, range(count)))


@pytest.mark.parametrize("model", ["both", "mixed"])
def test_each_gpu_has_the_counts_of_its_instances(server: conch.Server, model: str) -> None:
    """As the answers say who gave them; the series without `gpu_uuid` has the rest, the statistics have the sum."""
    answers = ask(server, model, 60)
    until(lambda: sum(scrape(server, "nv_inference_exec_count", model).values()) == 60)
    assert scrape(server, "nv_inference_request_success", model) == {
        "": answers[-1], NAMES[0]: answers[0], NAMES[1]: answers[1]
    }  # fmt: skip
    assert scrape(server, "nv_inference_request_failure", model) == {
        "": answers[99], NAMES[0]: answers[100], NAMES[1]: answers[101]
    }  # fmt: skip
    assert min(answers[0], answers[1]) > 0
    for metric in ("nv_inference_compute_infer_duration_us", "nv_inference_compute_infer_summary_us_count"):
        assert all(scrape(server, metric, model)[name] > 0 for name in NAMES.values())
    (stats,) = server.model(model).statistics().model_stats
    assert (stats.inference_count, stats.execution_count) == (45, 60)
    assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (45, 15)
    assert [(each.batch_size, each.compute_infer.count) for each in stats.batch_stats] == [(1, 60)]


def test_what_is_the_models_alone_has_no_gpu(server: conch.Server) -> None:
    """Waiting, loading and first responses are counted for the model; its GPUs have the lines, with nothing in them."""
    ask(server, "both", 12)
    until(lambda: sum(scrape(server, "nv_inference_exec_count", "both").values()) == 12)
    first = scrape(server, "nv_inference_first_response_histogram_ms_count", "both")
    loaded = scrape(server, "nv_model_load_duration_secs", "both")
    waiting = scrape(server, "nv_inference_pending_request_count", "both")
    assert first == {"": 9, NAMES[0]: 0, NAMES[1]: 0}
    assert loaded.pop("") > 0
    assert loaded == {NAMES[0]: 0, NAMES[1]: 0}
    assert waiting == {"": 0, NAMES[0]: 0, NAMES[1]: 0}


def test_models_on_the_cpu_have_one_series(server: conch.Server) -> None:
    """Also where there are GPUs."""
    ask(server, "cpu", 4)
    until(lambda: scrape(server, "nv_inference_exec_count", "cpu") == {"": 4})
    assert scrape(server, "nv_inference_request_success", "cpu") == {"": 3}
