"""Stand-ins for `tensorrt` and `cuda.bindings.runtime` with the calls that we make: "device memory" is the host's.

The engine has one input `x` and one output `y`, `y` = `x` * 2, FP32. Names and signatures are those of TensorRT 10 and
cuda-python 13, which gives None beside an error code; that the real libraries behave so is not shown by tests that use
this.
"""

from __future__ import annotations

import ctypes
import json
import sys
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
#: Rows from 1 to 4, tuned for 2; and from 1 to 16, tuned for 16.
PROFILES: list[Profile] = [((1, 3), (2, 3), (4, 3)), ((1, 3), (16, 3), (16, 3))]


def plan(
    profiles: list[Profile] | None = None, shape: tuple[int, ...] = (-1, 3), kind: str = "FLOAT", **more: Any
) -> bytes:
    """The content of a model.plan."""
    return json.dumps({"profiles": profiles or PROFILES, "shape": shape, "kind": kind, **more}).encode()


class Log:
    """What the fakes were asked to do, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.allocated: dict[int, Any] = {}
        self.recording: list[Any] | None = None

    def count(self, name: str) -> int:
        return self.calls.count(name)


class Context:
    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine, self._log = engine, log
        self._addresses: dict[str, int] = {}
        self.profile = 0
        self._shape: tuple[int, ...] = ()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert isinstance(stream, int)
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.told["profiles"][self.profile]
        self._shape = shape
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "y" and self._shape and self._engine.told.get("shrinking"):
            return (20 - self._shape[0], 3)
        return (-1, 3) if self._engine.told.get("unknown") else self._shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert isinstance(stream, int)
        self._log.calls.append(f"execute {self.profile}")
        if self._log.recording is not None and self._engine.told.get("raising"):
            raise RuntimeError("it is not to be recorded")
        if self._log.recording is not None:
            self._log.recording.append((self, self._shape))
            return not self._engine.told.get("unrecordable")
        self.compute(self._shape)
        return not self._engine.told.get("failing")

    def compute(self, shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape)) * 4
        x = np.frombuffer(ctypes.string_at(self._addresses["x"], size), np.float32)
        ctypes.memmove(self._addresses["y"], (x * 2).tobytes(), size)


class Engine:
    def __init__(self, told: dict[str, Any], log: Log) -> None:
        self.told, self._log = told, log
        self.num_io_tensors = 2
        self.num_optimization_profiles = len(told["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name="INPUT" if name == "x" else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.told["kind"])

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.told["shape"])

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return [list(each) for each in self.told["profiles"][profile]]

    def get_tensor_format(self, name: str) -> Any:
        return SimpleNamespace(name=self.told.get("format", "LINEAR"))

    def is_shape_inference_io(self, name: str) -> bool:
        return bool(self.told.get("shape_tensor"))

    def create_execution_context(self, strategy: Any) -> Context:
        self._log.calls.append(f"context {strategy}")
        return Context(self, self._log)


def _tensorrt(log: Log) -> ModuleType:
    module: Any = ModuleType("tensorrt")

    class ILogger:
        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            log.calls.append("deserialize")
            try:
                return Engine(json.loads(content), log)
            except ValueError:
                self._logger.log(SimpleNamespace(name="ERROR"), "Magic tag does not match")
                return None

    module.ILogger, module.Runtime, module.__version__ = ILogger, Runtime, "10.9"
    module.init_libnvinfer_plugins = lambda logger, space: True
    module.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", ON_PROFILE_CHANGE="ON_PROFILE_CHANGE")
    return module


def _cuda(log: Log, gpus: int) -> ModuleType:
    module: Any = ModuleType("cuda.bindings.runtime")

    class Error(int):
        name = "cudaErrorStreamCaptureUnsupported"

    ok = Error(0)

    def allocate(size: int, *_: Any) -> tuple[Error, int]:
        memory = (ctypes.c_char * size)()
        log.allocated[ctypes.addressof(memory)] = memory
        return ok, ctypes.addressof(memory)

    def free(address: int) -> tuple[Error]:
        del log.allocated[address]
        return (ok,)

    def copy(to: int, begin: int, size: int, kind: Any, stream: Any) -> tuple[Error]:
        log.calls.append(f"copy {kind}")
        ctypes.memmove(to, begin, size)
        return (ok,)

    def begin(stream: Any, mode: Any) -> tuple[Error]:
        log.recording = []
        return (ok,)

    def end(stream: Any) -> tuple[Error, Any]:
        recorded, log.recording = log.recording, None
        assert recorded is not None
        failed = any(context._engine.told.get("unrecordable") for context, _ in recorded)
        return (Error(900), None) if failed else (ok, recorded)

    def instantiate(graph: Any, flags: int) -> tuple[Error, Any]:
        failed = any(context._engine.told.get("uninstantiable") for context, _ in graph)
        return (Error(2), None) if failed else (ok, graph)

    def launch(graph: Any, stream: Any) -> tuple[Error]:
        log.calls.append("launch")
        for context, shape in graph:
            context.compute(shape)
        return (ok,)

    def noted(name: str) -> Any:
        def call(*_: Any) -> tuple[Error]:
            log.calls.append(name)
            return (ok,)

        return call

    module.cudaGetDeviceCount = lambda: (ok, gpus) if gpus else (Error(100), None)
    module.cudaSetDevice = lambda number: (ok,)
    module.cudaStreamCreate = lambda: (ok, 7)
    module.cudaStreamDestroy = noted("stream destroyed")
    module.cudaStreamSynchronize = noted("synchronize")
    module.cudaMalloc = allocate
    module.cudaFree = free
    module.cudaMemcpyAsync = copy
    module.cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="within"
    )
    module.cudaStreamBeginCapture, module.cudaStreamEndCapture = begin, end
    module.cudaStreamCaptureMode = Enum("Mode", "cudaStreamCaptureModeThreadLocal")
    module.cudaGraphInstantiate = instantiate
    module.cudaGraphLaunch = launch
    module.cudaGraphDestroy = noted("graph destroyed")
    module.cudaGraphExecDestroy = noted("exec destroyed")
    return module


def install(monkeypatch: pytest.MonkeyPatch, gpus: int = 1) -> Log:
    """Put the fakes where the libraries would be, for this test."""
    log = Log()
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    runtime = _cuda(log, gpus)
    bindings.runtime = runtime  # type: ignore[attr-defined]
    for name, module in (
        ("tensorrt", _tensorrt(log)),
        ("cuda", cuda),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", runtime),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return log
