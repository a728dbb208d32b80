"""What the ONNX backend adds to ONNX Runtime's own call, per batch: `python bench/micro/onnx_backend.py`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.onnx import OnnxBackend
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP32
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead

ROUNDS = 5


class Sink:
    """Takes the answers and does nothing with them."""

    def reply(self, request: InferRequest, response: Any, final: bool) -> None: ...

    def fail(self, request: InferRequest, error: Exception) -> None:
        raise error


def main() -> int:
    print(f"{'elements':>9} {'requests':>9} {'raw us':>9} {'ours us':>9} {'added us':>9} {'per request':>12}")
    for elements in (16, 12_288, 150_528):
        with tempfile.TemporaryDirectory() as folder:
            instance = load(Path(folder), elements)
            for count in (1, 4, 16):
                compare(instance, elements, count)
    return 0


def load(folder: Path, elements: int) -> Any:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", elements]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", info[:1], info[1:])
    path = folder / "1" / "model.onnx"
    path.parent.mkdir()
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(made.SerializeToString())
    config = ModelConfig(name="m", backend="onnxruntime", max_batch_size=16)
    files = ModelFiles(folder, 1)
    host = Host(asyncio.new_event_loop(), cpus=1)
    OnnxBackend().complete(config, files, host)
    spec = ModelSpec("m", 1, 16, (TensorSpec("x", FP32, (elements,)),), (TensorSpec("y", FP32, (elements,)),))
    return OnnxBackend().load(config, spec, files, host, ModelStats()).instance(Placement("m_0_0", "CPU"))


def compare(instance: Any, elements: int, count: int) -> None:
    batch = [request(elements) for _ in range(count)]
    joined = np.ones((count, elements), np.float32)
    session = instance._session
    repeats = max(50, 20_000_000 // (elements * count + 2000))
    raw = best(lambda: session.run(["y"], {"x": joined}), repeats)
    ours = best(lambda: instance.run(batch), repeats)
    added = ours - raw
    print(f"{elements:9} {count:9} {raw:9.2f} {ours:9.2f} {added:9.2f} {added / count:12.2f}")


def request(elements: int) -> InferRequest:
    shapes = ((1, elements),)
    form = RequestForm(
        head=RequestHead("m"),
        model=None,
        submit=lambda _: None,
        version=1,
        generation=0,
        inputs=(0,),
        order=(0,),
        shapes=shapes,
        backend_shapes=shapes,
        sizes=(elements * 4,),
        counts=(elements,),
        rows=1,
        batch_key=None,
        outputs=None,
    )
    return InferRequest(form, "", (bytes(elements * 4),), Sink(), time.monotonic_ns())


def best(work: Callable[[], object], repeats: int) -> float:
    """Microseconds per call: the best of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for _ in range(repeats // ROUNDS):
            work()
        times.append((time.perf_counter() - begin) / (repeats // ROUNDS))
    return min(times) * 1e6


if __name__ == "__main__":
    sys.exit(main())
