"""What one request to a Python model costs: CPU microseconds in the server and in the worker, by batch size.

    python bench/micro/python_backend.py [--seconds 2] [--elements 16] [--batches 1,8,32]

The instance is driven alone, without transport and scheduler: fake requests, a sink that drops the answers.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
import threading
import time
from pathlib import Path

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.python.backend import PythonBackend
from conch.backend.python.host import PythonInstance
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP32
from conch.types.error import InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse

MODEL = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("Y", x)]))
        return responses
"""


class Drop:
    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        """Answers are of no interest."""

    def fail(self, request: InferRequest, error: InferError) -> None:
        raise AssertionError(error)


class Drive:
    """Runs batches one after the other on the loop for some time."""

    def __init__(self, instance: PythonInstance, loop: asyncio.AbstractEventLoop, form: RequestForm, size: int) -> None:
        data = (bytes(form.sizes[0]),)
        sink = Drop()
        self._batch = [InferRequest(form, "", data, sink, time.monotonic_ns()) for _ in range(size)]
        self._instance = instance
        self._loop = loop
        self._over = threading.Event()
        self._deadline = 0.0
        self.batches = 0
        self.cpu = self.wall = 0.0

    def run(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._loop.call_soon_threadsafe(self._begin)
        self._over.wait()

    def _begin(self) -> None:
        self.cpu, self.wall = -time.thread_time(), -time.monotonic()
        self._instance.start(self._batch, self._idle)

    def _idle(self) -> None:
        self.batches += 1
        now = time.monotonic()
        if now < self._deadline:
            self._instance.start(self._batch, self._idle)
            return
        self.cpu += time.thread_time()
        self.wall += now
        self._over.set()


def worker_cpu(instance: PythonInstance) -> float:
    """Seconds of CPU that the instance's worker has used."""
    worker = instance._worker
    assert worker is not None
    return int(Path(f"/proc/{worker.pid}/schedstat").read_text().split()[0]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--elements", type=int, default=16)
    parser.add_argument("--batches", default="1,8,32")
    arguments = parser.parse_args()
    loop = asyncio.new_event_loop()
    try:
        import uvloop

        loop = uvloop.new_event_loop()
    except ImportError:
        """The standard loop does as well."""
    threading.Thread(target=loop.run_forever, daemon=True).start()
    shape = (1, arguments.elements)
    spec = ModelSpec("bench", 1, 64, (TensorSpec("X", FP32, shape[1:]),), (TensorSpec("Y", FP32, shape[1:]),))
    size = math.prod(shape) * 4
    form = RequestForm(
        RequestHead("bench"), None, lambda _: None, 1, 0, (0,), (0,), (shape,), (shape,), (size,), (size // 4,), 1,
        None, None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "1").mkdir()
        (directory / "1" / "model.py").write_text(MODEL)
        config = ModelConfig(name="bench", max_batch_size=64)
        begun = time.monotonic()
        model = PythonBackend().load(config, spec, ModelFiles(directory, 1), Host(loop), ModelStats())
        instance = model.instance(Placement("bench_0_0", "CPU"))
        print(f"load {time.monotonic() - begun:.3f} s, {size} bytes per request")
        print(f"{'batch':>6} {'host us':>8} {'worker us':>10} {'requests/s':>11}   per request")
        for count in map(int, arguments.batches.split(",")):
            Drive(instance, loop, form, count).run(0.2)
            drive = Drive(instance, loop, form, count)
            before = worker_cpu(instance)
            drive.run(arguments.seconds)
            requests = drive.batches * count
            worker = (worker_cpu(instance) - before) / requests * 1e6
            print(f"{count:>6} {drive.cpu / requests * 1e6:>8.2f} {worker:>10.2f} {requests / drive.wall:>11.0f}")
        model.close()
    loop.call_soon_threadsafe(loop.stop)


if __name__ == "__main__":
    main()
