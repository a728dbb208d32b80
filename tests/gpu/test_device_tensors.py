"""Tensors that stay on a real GPU between the steps of an ensemble, and pinned memory (`make test-gpu`)."""

from __future__ import annotations

import gc
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import Placement
from conch.memory.cuda import find_driver
from conch.memory.pinned import PinnedPool
from conch.types.device import OnDevice, gpu
from conch.types.error import InferError
from support import onnx_models
from support.onnx_models import Served
from support.server import Server

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

HERE = Placement("m_0", "GPU", 0)
TORCH = """
  max_batch_size: 8
  input { name: "x" data_type: TYPE_FP32 dims: 2 }
  output { name: "y__0" data_type: TYPE_FP32 dims: 2 }"""
GROUP = "instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0 ] } ]\n"
ENSEMBLE = """
platform: "ensemble" max_batch_size: 8
input { name: "a" data_type: TYPE_FP32 dims: 2 }
output { name: "c" data_type: TYPE_FP32 dims: 2 }
ensemble_scheduling {
  step { model_name: "first" model_version: -1 input_map { key: "x" value: "a" } output_map { key: "%s" value: "b" } }
  step { model_name: "second" model_version: -1 input_map { key: "x" value: "b" } output_map { key: "%s" value: "c" } }
}
"""


def cuda_provider() -> None:
    """Skips where ONNX Runtime is that for the CPU alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime is for the CPU alone: pip install onnxruntime-gpu")


def cuda_torch() -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch cannot use the GPU")
    return torch


def torch_model(directory: Path, placement: Placement | None = HERE) -> Served:
    """`y` = `x` + 1."""
    torch = cuda_torch()
    from support.torch_models import script, serve

    class Next(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + 1

    return serve(directory, script(Next().eval()), TORCH, placement=placement)


def onnx_model(directory: Path) -> Served:
    """`y` is `x`."""
    cuda_provider()
    return onnx_models.serve(directory, onnx_models.identity(), placement=HERE)


def numbers(rows: int, first: int = 0) -> np.ndarray[Any, Any]:
    return np.arange(2 * first, 2 * (first + rows), dtype=np.float32).reshape(rows, 2)


def left(served: Served, *given: Any) -> list[OnDevice]:
    """The one output of each request, which stays; inputs are arrays, or tensors on the GPU of two rows."""
    requests = []
    for each in given:
        request = served.request({"x": numbers(2) if isinstance(each, OnDevice) else each})
        request.form.stays = frozenset({"y", "y__0"})
        if isinstance(each, OnDevice):
            request.data = (each,)  # type: ignore[assignment]
        requests.append(request)
    found = []
    for answer in served.run(*requests):
        assert not isinstance(answer, InferError), answer
        (tensor,) = answer.values()
        assert isinstance(tensor.data, OnDevice)
        assert tensor.data.device == gpu(0)
        found.append(tensor.data)
    return found


def values(value: OnDevice) -> list[list[float]]:
    found: list[list[float]] = np.frombuffer(bytes(value), np.float32).reshape(-1, 2).tolist()
    return found


@pytest.mark.parametrize("first", [torch_model, onnx_model])
@pytest.mark.parametrize("second", [torch_model, onnx_model])
def test_a_batch_goes_from_model_to_model_on_the_gpu(tmp_path: Path, first: Any, second: Any) -> None:
    """Also from one framework to another, alone and joined with what is on the host, again and again."""
    writer, reader = first(tmp_path / "first"), second(tmp_path / "second")
    added = (first is torch_model) + (second is torch_model)
    for turn in range(20):
        one, two = left(writer, numbers(2, turn), numbers(2, turn + 5))
        found = left(reader, one, numbers(2, 7), two)
        expected = [numbers(2, turn) + added, numbers(2, 7) + (second is torch_model), numbers(2, turn + 5) + added]
        assert [values(each) for each in found] == [each.tolist() for each in expected]
        (alone,) = left(reader, one)
        assert values(alone) == expected[0].tolist()


def test_memory_on_the_gpu_goes_with_the_last_reader(tmp_path: Path) -> None:
    """Thousands of tensors that stayed leave nothing behind."""
    torch = cuda_torch()
    served = torch_model(tmp_path)
    left(served, numbers(8))
    gc.collect()
    before = torch.cuda.memory_allocated(0)
    for _ in range(2000):
        left(served, numbers(8))
    gc.collect()
    assert torch.cuda.memory_allocated(0) == before


def test_pinned_memory_is_what_cuda_takes_for_it(tmp_path: Path) -> None:
    """PyTorch sees that copies from and to it can be asynchronous."""
    torch = cuda_torch()
    assert find_driver() is not None
    pool = PinnedPool(1 << 20)
    pool.open(0)
    staging = pool.take(1 << 12)
    assert torch.from_numpy(staging).is_pinned()
    staging[:] = 5
    copied = torch.from_numpy(staging).to("cuda:0", non_blocking=True)
    back = torch.from_numpy(pool.take(1 << 12)).copy_(copied + 1, non_blocking=True)
    torch.cuda.synchronize(0)
    assert set(back.tolist()) == {6}
    assert not torch.from_numpy(pool.take(1 << 21)).is_pinned()


def ask(server: Server, rows: int) -> list[float]:
    body = {"inputs": [{"name": "a", "datatype": "FP32", "shape": [rows, 2], "data": list(range(2 * rows))}]}
    request = urllib.request.Request(f"http://{server.http}/v2/models/e/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[float] = json.load(answer)["outputs"][0]["data"]
    return found


@pytest.mark.parametrize(("kind", "output", "added"), [("torch", "y__0", 2), ("onnx", "y", 0)])
@pytest.mark.parametrize("pool", ["0", "4096", "268435456"])
def test_ensembles_on_a_gpu_are_served(tmp_path: Path, kind: str, output: str, added: int, pool: str) -> None:
    """Whatever there is of pinned memory."""
    if kind == "torch":
        cuda_torch()
    else:
        cuda_provider()
    for name in ("first", "second"):
        if kind == "torch":
            torch_model(tmp_path / name, None)
            text = TORCH + '\nbackend: "pytorch"\n' + GROUP
        else:
            onnx_models.write(tmp_path / name, onnx_models.identity())
            text = "max_batch_size: 8\n" + GROUP
        (tmp_path / name / "config.pbtxt").write_text(text)
    (tmp_path / "e" / "1").mkdir(parents=True)
    (tmp_path / "e" / "config.pbtxt").write_text(ENSEMBLE % (output, output))
    with Server(tmp_path, f"--pinned-memory-pool-byte-size={pool}") as server:
        for rows in (1, 3, 8):
            assert ask(server, rows) == [number + added for number in range(2 * rows)]
