"""What only a GPU can show: placement, streams, metrics, limits and shared memory on real ones (`make test-gpu`)."""

from __future__ import annotations

import ctypes
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from conch.config.gpus import read_gpus
from conch.observe.gpu import GpuGauges, open_nvml
from conch.types.dtype import FP32
from support.onnx_models import graph
from support.server import Server
from support.until import until

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

GROUPS = "instance_group [ {{ count: {count} kind: KIND_GPU gpus: [ 0 ] }} ]\n"


def save_doubling(path: Path) -> None:
    tensor = {"x": (FP32, ("batch", 2))}, {"y": (FP32, ("batch", 2))}
    onnx.save(graph([helper.make_node("Mul", ["x", "two"], ["y"])], *tensor, {"two": np.float32(2)}), path)


def cuda_provider() -> None:
    """Skips where ONNX Runtime is that for the CPU alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is for the CPU alone: pip install onnxruntime-gpu")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name / "1").mkdir(parents=True)
        save_doubling(tmp_path / name / "1" / "model.onnx")
        (tmp_path / name / "config.pbtxt").write_text(GROUPS.format(count=count))
    return tmp_path


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    cuda_provider()
    with Server(repository) as server:
        yield server


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def ask(server: Server, model: str, rows: int) -> list[float]:
    data = list(range(2 * rows))
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": data}]}
    request = urllib.request.Request(f"http://{server.http}/v2/models/{model}/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[float] = json.load(answer)["outputs"][0]["data"]
    return found


def test_the_driver_and_nvml_know_the_same_gpus() -> None:
    """Each GPU that CUDA shows has a name and gauges in NVML, also with CUDA_VISIBLE_DEVICES and MIG."""
    gpus = read_gpus()
    try:
        nvml = open_nvml(gpus)
    except LookupError as error:
        pytest.skip(str(error))
    assert sorted(nvml.devices) == [gpu.device for gpu in gpus]
    gauges = GpuGauges(nvml)
    gauges.read()
    page = gauges.render().decode()
    for name, _ in nvml.devices.values():
        assert re.search(rf'^nv_gpu_memory_total_bytes{{gpu_uuid="{name}"}} [0-9]+$', page, re.MULTILINE)
    assert all(gpu.capability >= 3 and gpu.memory > 1 << 30 for gpu in gpus)


@pytest.mark.parametrize("model", ["one", "two"])
def test_onnx_models_answer_from_the_gpu(server: Server, model: str) -> None:
    """One instance or two on one GPU, each with a session and a stream of its own, give what the CPU gives."""
    config = json.loads(get(server.http, f"/v2/models/{model}/config"))
    assert config["instance_group"][0]["kind"] == "KIND_GPU"
    assert config["instance_group"][0]["gpus"] == [0]
    for rows in (1, 3, 8):
        np.testing.assert_allclose(ask(server, model, rows), np.arange(2.0 * rows) * 2, rtol=1e-5)


def test_a_model_that_says_nothing_goes_to_the_gpus(tmp_path: Path) -> None:
    """KIND_AUTO is the GPU where the backend can use it."""
    cuda_provider()
    (tmp_path / "auto" / "1").mkdir(parents=True)
    save_doubling(tmp_path / "auto" / "1" / "model.onnx")
    with Server(tmp_path) as server:
        (group,) = json.loads(get(server.http, "/v2/models/auto/config"))["instance_group"]
        assert group["kind"] == "KIND_GPU"
        assert group["gpus"] == [gpu.device for gpu in read_gpus()]


def test_the_metrics_page_shows_the_gpus(server: Server) -> None:
    """Gauges of each GPU with plain digits, and what models did on it."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    ask(server, "one", 1)
    counted = re.compile(r'^nv_inference_count{gpu_uuid="[^"]+",model="one",version="1"} 1$', re.MULTILINE)
    # What is counted is counted after the answer.
    until(lambda: counted.search(get(server.metrics, "/metrics")) is not None)
    page = get(server.metrics, "/metrics")
    for name in ("nv_gpu_utilization", "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"):
        assert re.search(rf'^{name}{{gpu_uuid="(GPU|MIG)-[0-9a-f-]+"}} [0-9.]+$', page, re.MULTILINE)
    assert 'nv_inference_count{model="one",version="1"} 0\n' in page


def test_a_full_gpu_refuses_loads(repository: Path) -> None:
    """With the limit at nothing, no instance is made, and the reason is Triton's."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    cuda_provider()
    with Server(
        repository, "--model-load-gpu-limit=0:0", "--exit-on-error=false", "--strict-readiness=false"
    ) as server:
        request = urllib.request.Request(f"http://{server.http}/v2/repository/index", b"{}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            reasons = {each["name"]: each["reason"] for each in json.load(answer)}
    assert "memory limit set for GPU 0 has exceeded, model loading is rejected." in reasons["one"]


def test_the_cpu_alone_when_the_environment_says_so(repository: Path) -> None:
    """TRITON_SERVER_CPU_ONLY: no GPU for models, none on the metrics page."""
    (repository / "one" / "config.pbtxt").unlink()
    (repository / "two" / "config.pbtxt").unlink()
    with Server(repository, env={"TRITON_SERVER_CPU_ONLY": "1"}) as server:
        (group,) = json.loads(get(server.http, "/v2/models/one/config"))["instance_group"]
        assert group["kind"] == "KIND_CPU"
        assert "nv_gpu_" not in get(server.metrics, "/metrics")


def test_python_models_are_told_their_gpu(tmp_path: Path) -> None:
    """A Python model without instance groups has an instance on each GPU, and hears of it in its arguments."""
    (tmp_path / "where" / "1").mkdir(parents=True)
    (tmp_path / "where" / "config.pbtxt").write_text(
        'backend: "python"\ninput { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }\n'
        'output { name: "kind" data_type: TYPE_STRING dims: [ 1 ] }\n'
    )
    (tmp_path / "where" / "1" / "model.py").write_text(
        "import numpy as np\nimport triton_python_backend_utils as pb\n"
        "class TritonPythonModel:\n"
        "    def initialize(self, args):\n"
        "        self.text = args['model_instance_kind'] + args['model_instance_device_id']\n"
        "    def execute(self, requests):\n"
        "        out = np.array([self.text.encode()], dtype=object)\n"
        "        return [pb.InferenceResponse([pb.Tensor('kind', out)]) for _ in requests]\n"
    )
    with Server(tmp_path) as server:
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
        request = urllib.request.Request(f"http://{server.http}/v2/models/where/infer", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert re.fullmatch(r"GPU[0-9]+", json.load(answer)["outputs"][0]["data"][0])


def test_regions_of_gpu_memory_of_another_process_can_be_used(tmp_path: Path) -> None:
    """tritonclient's CUDA shared memory, registered with the server, holds a request's input and its output."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed", exc_type=ImportError)
    import tritonclient.http as client
    import tritonclient.utils.cuda_shared_memory as shm

    (tmp_path / "echo" / "1").mkdir(parents=True)
    (tmp_path / "echo" / "config.pbtxt").write_text(
        'backend: "identity"\ninput { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }\n'
        'output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }\n'
    )
    size = 4 * ctypes.sizeof(ctypes.c_float)
    with Server(tmp_path, "--allow-client-shm=true") as server:
        caller = client.InferenceServerClient(server.http)
        regions = [shm.create_shared_memory_region(name, size, 0) for name in ("in", "out")]
        try:
            shm.set_shared_memory_region(regions[0], [np.arange(4, dtype=np.float32)])
            for name, region in zip(("in", "out"), regions, strict=True):
                caller.register_cuda_shared_memory(name, shm.get_raw_handle(region), 0, size)
            given = client.InferInput("x", [4], "FP32")
            given.set_shared_memory("in", size)
            wanted = client.InferRequestedOutput("y")
            wanted.set_shared_memory("out", size)
            caller.infer("echo", [given], outputs=[wanted])
            found = shm.get_contents_as_numpy(regions[1], np.float32, [4])
            np.testing.assert_array_equal(found, np.arange(4, dtype=np.float32))
        finally:
            caller.unregister_cuda_shared_memory()
            for region in regions:
                shm.destroy_shared_memory_region(region)
