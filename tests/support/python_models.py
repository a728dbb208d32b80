"""Python models in real worker processes, driven without transport and scheduler."""

from __future__ import annotations

import asyncio
import math
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from conch.backend.api import Host, ModelFiles, Models, Placement
from conch.backend.python.backend import PythonBackend, PythonModel
from conch.backend.python.host import PythonInstance
from conch.observe.custom import Families
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NAME, BYTES, FP32
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.tensor import Tensor, from_numpy, to_numpy
from support.requests import Recorder

HEAD = """\
import os, signal, sys, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils


def answer(array, name="Y", **extras):
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array)], **extras)


class TritonPythonModel:
"""
ECHO = "return [answer(r.inputs()[0].as_numpy()) for r in requests]"


def model_source(execute: str = ECHO, more: str = "") -> str:
    """A model.py with this body of `execute`, and `more` in its class."""
    method = "def execute(self, requests):\n" + textwrap.indent(textwrap.dedent(execute), "    ")
    return HEAD + textwrap.indent(method + "\n" + textwrap.dedent(more), "    ")


def make_spec(
    datatype: str = "FP32", dims: tuple[int, ...] = (-1,), max_batch_size: int = 8, *, decoupled: bool = False
) -> ModelSpec:
    """Input X and output Y of this type; outputs Z (the same) and W (FP32) on top."""
    kind = BY_NAME[datatype]
    outputs = (TensorSpec("Y", kind, dims), TensorSpec("Z", kind, dims), TensorSpec("W", FP32, dims))
    return ModelSpec("m", 1, max_batch_size, (TensorSpec("X", kind, dims),), outputs, decoupled)


def form_for(spec: ModelSpec, shape: tuple[int, ...], **changes: Any) -> RequestForm:
    """A form with every input of `spec` in this full shape."""
    inputs = spec.inputs
    count = math.prod(shape)
    values: dict[str, Any] = {
        "head": RequestHead(spec.name),
        "model": None,
        "submit": lambda _: None,
        "version": 1,
        "generation": 0,
        "inputs": tuple(range(len(inputs))),
        "order": tuple(range(len(inputs))),
        "shapes": (shape,) * len(inputs),
        "backend_shapes": (shape,) * len(inputs),
        "sizes": tuple(-1 if each.datatype is BYTES else count * each.datatype.size for each in inputs),
        "counts": (count,) * len(inputs),
        "rows": shape[0] if spec.max_batch_size and shape else 1,
        "batch_key": None,
        "outputs": None,
        "has_bytes": any(each.datatype is BYTES for each in inputs),
    }
    return RequestForm(**(values | changes))


class Served:
    """A model with one instance. `ask` runs one batch and gives what became of each request, in order."""

    def __init__(self, model: PythonModel, instance: PythonInstance, spec: ModelSpec, stats: ModelStats) -> None:
        self.model = model
        self.instance = instance
        self.spec = spec
        self.stats = stats
        self.loop: asyncio.AbstractEventLoop = instance._loop

    def request(self, array: Any, id: str = "", form: RequestForm | None = None, **changes: Any) -> InferRequest:
        array = np.asarray(array)
        form = form or form_for(self.spec, array.shape, **changes)
        data = tuple(bytes(from_numpy(self.spec.inputs[position].datatype, array)) for position in form.inputs)
        return InferRequest(form, id, data, Recorder(), time.monotonic_ns())

    def start(self, batch: Sequence[InferRequest]) -> threading.Event:
        """Give the instance a batch; the event is set when it is idle again."""
        idle = threading.Event()
        self.loop.call_soon_threadsafe(self.instance.start, batch, idle.set)
        return idle

    def ask(self, *batch: InferRequest, seconds: float = 60.0) -> list[Any]:
        assert self.start(batch).wait(seconds), "the instance is not idle again"
        return [outcome(request) for request in batch]

    def echo(self, value: float = 1.0) -> Any:
        """What one small request gets."""
        return self.ask(self.request(np.full((1, 2), value, np.float32)))[0]

    @property
    def pid(self) -> int:
        """The process number of the worker, once there is one."""
        deadline = time.monotonic() + 60
        while (worker := self.instance._worker) is None:
            assert time.monotonic() < deadline, "no worker came up"
            time.sleep(0.001)
        return worker.pid


def outcome(request: InferRequest) -> Any:
    """The one response or error of a request."""
    sink = request.sink
    assert isinstance(sink, Recorder)
    assert len(sink.finals()) == 1, f"{len(sink.finals())} final answers"
    return sink.replies[0][1] if sink.replies else sink.errors[0][1]


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    return to_numpy(tensor.datatype, tensor.shape, tensor.data)


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def write_model(folder: Path, source: str, file: str = "model.py") -> ModelFiles:
    version = folder / "m" / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / file).write_text(source)
    return ModelFiles(folder / "m", 1)


@contextmanager
def served(
    folder: Path,
    source: str,
    spec: ModelSpec | None = None,
    settings: Mapping[str, str] | None = None,
    config: ModelConfig | None = None,
    models: Models | None = None,
    metrics: Families | None = None,
) -> Iterator[Served]:
    spec = spec or make_spec()
    config = config or ModelConfig(name="m", max_batch_size=spec.max_batch_size)
    config.model_transaction_policy.decoupled = spec.decoupled
    files = write_model(folder, source)
    with running_loop() as loop:
        stats = ModelStats()
        host = Host(loop, settings or {}, models=models, metrics=metrics)
        model = PythonBackend().load(config, spec, files, host, stats)
        try:
            yield Served(model, model.instance(Placement("m_0_0", "CPU")), spec, stats)
        finally:
            model.close()
