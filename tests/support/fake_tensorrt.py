"""Stand-ins for `tensorrt` and `cuda.bindings.runtime` with the calls that we make: "device memory" is the host's.

Names, signatures and answers are those of TensorRT 10 and 11 and of cuda-bindings 12.8 to 13, which give None beside an
error code (`tests/unit/test_gpu_libraries.py` compares what can be compared); that the real libraries compute so is not
shown by tests that use this.
"""

from __future__ import annotations

import ctypes
import json
import sys
from enum import Enum, IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
#: Rows from 1 to 4, tuned for 2; and from 1 to 16, tuned for 16.
PROFILES: list[Profile] = [((1, 3), (2, 3), (4, 3)), ((1, 3), (16, 3), (16, 3))]
#: Values of the shape tensor of "resize".
VALUES: list[Profile] = [((1, 1), (2, 3), (4, 6)), ((1, 1), (6, 8), (6, 8))]


def plan(
    profiles: list[Profile] | None = None, shape: tuple[int, ...] = (-1, 3), kind: str = "FLOAT", **more: Any
) -> bytes:
    """The content of a model.plan. Its `program` is one of

    double: `y` = `x` * 2, FP32;
    resize: `y` is `x` * 2 in the shape that the two values of the shape tensor `size` tell; the shape tensor `count`
    says how many elements that are;
    positive: `y` are the elements of `x` above 0.
    """
    return json.dumps({"profiles": profiles or PROFILES, "shape": shape, "kind": kind, **more}).encode()


class Log:
    """What the fakes were asked to do, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.allocated: dict[int, Any] = {}
        self.recording: list[Any] | None = None
        #: Bytes that can be allocated at a time.
        self.room = 1 << 40

    def count(self, name: str) -> int:
        return self.calls.count(name)


class Context:
    def __init__(self, engine: Engine, log: Log) -> None:
        self._engine, self._log = engine, log
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self.profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        #: What `infer_shapes` has read of "size".
        self._values: tuple[int, ...] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        self._values = None
        if name != "x":
            return shape == tuple(self._engine.tensors[name].shape)
        least, _, most = self._engine.told["profiles"][self.profile]
        return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def infer_shapes(self) -> list[str]:
        hosted = [name for name, each in self._engine.tensors.items() if each.hosted]
        missing = [name for name in hosted if name not in self._addresses]
        if not missing and hosted:
            self._values = struct_of(self._addresses["size"], 2)
            if self._values[0] * self._values[1] != np.prod(self._shapes["x"]):
                raise RuntimeError("reshape changes volume")
            ctypes.memmove(self._addresses["count"], np.int32([self._values[0] * self._values[1]]).tobytes(), 4)
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        told, shape = self._engine.told, self._shapes.get("x", ())
        if name != "y":
            return self._shapes.get(name, tuple(self._engine.tensors[name].shape))
        if self._engine.program == "resize":
            return self._values or (-1, -1)
        if self._engine.program == "positive":
            return (-1,)
        return (20 - shape[0], 3) if shape and told.get("shrinking") else shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert type(memory) is int
        self._addresses[name] = memory
        return True

    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._allocators[name] = output_allocator
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert type(stream_handle) is int
        self._log.calls.append(f"execute {self.profile}")
        told = self._engine.told
        if self._log.recording is not None and told.get("raising"):
            raise RuntimeError("it is not to be recorded")
        if self._log.recording is not None:
            self._log.recording.append((self, self._shapes["x"], dict(self._addresses)))
            return not told.get("unrecordable")
        if told.get("failing"):
            self._engine.logger.log(SimpleNamespace(name="ERROR"), "out of luck")
            return False
        return self.compute(self._shapes["x"], self._addresses)

    def compute(self, shape: tuple[int, ...], addresses: dict[str, int]) -> bool:
        size = int(np.prod(shape)) * 4
        x = np.frombuffer(ctypes.string_at(addresses["x"], size), np.float32)
        if self._engine.program == "positive":
            return self._hand_out(x[x > 0])
        if self._engine.program == "resize":
            assert self._values
        elif self._engine.told.get("shrinking"):
            x = np.resize(x, (20 - shape[0], 3))
        ctypes.memmove(addresses["y"], (x * 2).tobytes(), x.nbytes)
        return True

    def _hand_out(self, found: np.ndarray[Any, Any]) -> bool:
        """As TensorRT does with an output whose shape it did not know."""
        allocator = self._allocators["y"]
        address = allocator.reallocate_output_async("y", self._addresses.get("y", 0), found.nbytes, 512, 7)
        if not address:
            return False
        assert address % 512 == 0
        ctypes.memmove(address, found.tobytes(), found.nbytes)
        allocator.notify_shape("y", found.shape)
        return True


def struct_of(address: int, count: int) -> tuple[int, ...]:
    return tuple(np.frombuffer(ctypes.string_at(address, 4 * count), np.int32).tolist())


class Engine:
    def __init__(self, told: dict[str, Any], log: Log, logger: Any = None) -> None:
        self.told, self._log, self.logger = told, log, logger
        self.program = told.get("program", "double")
        given = SimpleNamespace(kind=told["kind"], shape=told["shape"], hosted=False, mode="INPUT")
        self.tensors = {"x": given, "y": SimpleNamespace(**{**vars(given), "mode": "OUTPUT"})}
        if self.program == "positive":
            self.tensors["y"].shape = [-1]
        if self.program == "resize":
            self.tensors["size"] = SimpleNamespace(kind="INT32", shape=[2], hosted=True, mode="INPUT")
            self.tensors["y"].shape = [-1, -1]
            self.tensors["count"] = SimpleNamespace(kind="INT32", shape=[1], hosted=True, mode="OUTPUT")
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(told["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name].mode)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name].kind)

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.tensors[name].shape)

    def get_tensor_location(self, name: str) -> Any:
        return SimpleNamespace(name="HOST" if self.tensors[name].hosted else "DEVICE")

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [list(each) for each in self.told["profiles"][profile_index]]

    def get_tensor_profile_values(self, name: int, profile_index: str) -> list[list[int]]:
        """The real one has these names for a number and a tensor's name."""
        if type(name) is not int or type(profile_index) is not str:
            raise TypeError("get_tensor_profile_values(): incompatible function arguments")
        values = self.told.get("values", VALUES)
        return [list(each) for each in values[name]] if values else []

    def get_tensor_format(self, name: str) -> Any:
        return SimpleNamespace(name=self.told.get("format", "LINEAR"))

    def is_shape_inference_io(self, name: str) -> bool:
        return bool(self.tensors[name].hosted or self.told.get("shape_tensor"))

    def create_execution_context(self, strategy: Any) -> Context:
        self._log.calls.append(f"context {strategy}")
        return Context(self, self._log)


def _tensorrt(log: Log) -> ModuleType:
    module: Any = ModuleType("tensorrt")

    class ILogger:
        def __init__(self) -> None: ...

    class IOutputAllocator:
        def __init__(self) -> None: ...

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            log.calls.append("deserialize")
            try:
                return Engine(json.loads(serialized_engine), log, self._logger)
            except ValueError:
                self._logger.log(SimpleNamespace(name="ERROR"), "Magic tag does not match")
                return None

    def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
        module.plugins_call = logger
        return True

    module.ILogger, module.IOutputAllocator, module.Runtime = ILogger, IOutputAllocator, Runtime
    module.__version__ = "10.9"
    module.ICudaEngine, module.IExecutionContext = Engine, Context
    module.init_libnvinfer_plugins = init_libnvinfer_plugins
    module.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", ON_PROFILE_CHANGE="ON_PROFILE_CHANGE")
    return module


Error = IntEnum(
    "Error",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorNoDevice": 100,
        "cudaErrorStreamCaptureUnsupported": 900,
    },
)
_OK = Error.cudaSuccess


class Stream:
    """As cudaStream_t: no number, but it gives one."""

    def __int__(self) -> int:
        return 7


def _cuda(log: Log, gpus: int) -> ModuleType:
    module: Any = ModuleType("cuda.bindings.runtime")

    def cudaMalloc(size: int) -> tuple[Error, int | None]:  # noqa: N802
        if size > log.room:
            return Error.cudaErrorMemoryAllocation, None
        memory = (ctypes.c_char * (size + 256))()
        address = ctypes.addressof(memory) + -ctypes.addressof(memory) % 256
        log.allocated[address] = memory
        return _OK, address

    def cudaFree(devPtr: int) -> tuple[Error]:  # noqa: N802, N803
        del log.allocated[devPtr]
        return (_OK,)

    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: Any, stream: Any) -> tuple[Error]:  # noqa: N802
        log.calls.append(f"copy {kind}")
        ctypes.memmove(dst, src, count)
        return (_OK,)

    def cudaStreamBeginCapture(stream: Any, mode: Any) -> tuple[Error]:  # noqa: N802
        log.recording = []
        return (_OK,)

    def cudaStreamEndCapture(stream: Any) -> tuple[Error, Any]:  # noqa: N802
        recorded, log.recording = log.recording, None
        assert recorded is not None
        failed = any(context._engine.told.get("unrecordable") for context, *_ in recorded)
        return (Error.cudaErrorStreamCaptureUnsupported, None) if failed else (_OK, recorded)

    def cudaGraphInstantiate(graph: Any, flags: int) -> tuple[Error, Any]:  # noqa: N802
        failed = any(context._engine.told.get("uninstantiable") for context, *_ in graph)
        return (Error.cudaErrorMemoryAllocation, None) if failed else (_OK, graph)

    def cudaGraphLaunch(graphExec: Any, stream: Any) -> tuple[Error]:  # noqa: N802, N803
        log.calls.append("launch")
        for context, shape, addresses in graphExec:
            context.compute(shape, addresses)
        return (_OK,)

    def cudaStreamCreateWithFlags(flags: int) -> tuple[Error, Stream]:  # noqa: N802
        log.calls.append(f"stream {flags}")
        return _OK, Stream()

    def cudaSetDevice(device: int) -> tuple[Error]:  # noqa: N802
        log.calls.append(f"device {device}")
        return (_OK,)

    def cudaGetDeviceCount() -> tuple[Error, int | None]:  # noqa: N802
        return (_OK, gpus) if gpus else (Error.cudaErrorNoDevice, None)

    def cudaStreamDestroy(stream: Any) -> tuple[Error]:  # noqa: N802
        return noted("stream destroyed")

    def cudaStreamSynchronize(stream: Any) -> tuple[Error]:  # noqa: N802
        return noted("synchronize")

    def cudaGraphDestroy(graph: Any) -> tuple[Error]:  # noqa: N802
        return noted("graph destroyed")

    def cudaGraphExecDestroy(graphExec: Any) -> tuple[Error]:  # noqa: N802, N803
        return noted("exec destroyed")

    def noted(name: str) -> tuple[Error]:
        log.calls.append(name)
        return (_OK,)

    for call in (
        cudaMalloc, cudaFree, cudaMemcpyAsync, cudaStreamBeginCapture, cudaStreamEndCapture, cudaGraphInstantiate,
        cudaGraphLaunch, cudaGraphDestroy, cudaGraphExecDestroy, cudaStreamCreateWithFlags, cudaSetDevice,
        cudaGetDeviceCount, cudaStreamDestroy, cudaStreamSynchronize,
    ):  # fmt: skip
        setattr(module, call.__name__, call)
    module.cudaStreamNonBlocking = 1
    module.cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out", cudaMemcpyDeviceToDevice="within"
    )
    module.cudaStreamCaptureMode = Enum("Mode", "cudaStreamCaptureModeThreadLocal")
    return module


def made(log: Log | None = None, gpus: int = 1) -> tuple[Any, Any]:
    """The stand-ins of `tensorrt` and of `cuda.bindings.runtime`."""
    kept = log or Log()
    return _tensorrt(kept), _cuda(kept, gpus)


def install(monkeypatch: pytest.MonkeyPatch, gpus: int = 1) -> Log:
    """Put the fakes where the libraries would be, for this test."""
    log = Log()
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    trt, runtime = made(log, gpus)
    bindings.runtime = runtime  # type: ignore[attr-defined]
    for name, module in (
        ("tensorrt", trt),
        ("cuda", cuda),
        ("cuda.bindings", bindings),
        ("cuda.bindings.runtime", runtime),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return log
