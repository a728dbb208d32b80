"""Small ONNX models, and one call that loads one the way the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.onnx import OnnxBackend
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import InferError
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.tensor import Tensor, from_numpy
from support.requests import Recorder

Dims = Sequence[int | str] | None

#: Our types and ONNX's numbers for them.
ONNX_TYPES: Mapping[DataType, int] = {
    dtype.BOOL: TensorProto.BOOL,
    dtype.UINT8: TensorProto.UINT8,
    dtype.UINT16: TensorProto.UINT16,
    dtype.UINT32: TensorProto.UINT32,
    dtype.UINT64: TensorProto.UINT64,
    dtype.INT8: TensorProto.INT8,
    dtype.INT16: TensorProto.INT16,
    dtype.INT32: TensorProto.INT32,
    dtype.INT64: TensorProto.INT64,
    dtype.FP16: TensorProto.FLOAT16,
    dtype.FP32: TensorProto.FLOAT,
    dtype.FP64: TensorProto.DOUBLE,
    dtype.BYTES: TensorProto.STRING,
    dtype.BF16: TensorProto.BFLOAT16,
}


def graph(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[DataType, Dims]],
    outputs: Mapping[str, tuple[DataType, Dims]],
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes. Initializers that are also inputs are optional inputs."""
    tensors = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    made = helper.make_graph(nodes, "graph", _infos(inputs), _infos(outputs), tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def identity(datatype: DataType = dtype.FP32, shape: Dims = ("batch", 2)) -> onnx.ModelProto:
    """`y` is `x`."""
    return graph([helper.make_node("Identity", ["x"], ["y"])], {"x": (datatype, shape)}, {"y": (datatype, shape)})


def add_sub(shape: Dims = ("batch", 2)) -> onnx.ModelProto:
    """`sum` is `a` + `b`, `difference` is `a` - `b`."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    one = (dtype.FP32, shape)
    return graph(nodes, {"a": one, "b": one}, {"sum": one, "difference": one})


def scaled() -> onnx.ModelProto:
    """`y` is `x` * `factor`; `factor` may be left out and is then 10. Does not batch."""
    one = (dtype.FP32, [2])
    factor = np.array([10, 10], dtype=np.float32)
    return graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])], {"x": one, "factor": one}, {"y": one}, {"factor": factor}
    )


def chosen() -> onnx.ModelProto:
    """`y` is the row of a table of 3 that `x` says; other numbers are an error at run time."""
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    return graph(nodes, {"x": (dtype.INT64, ["batch"])}, {"y": (dtype.FP32, ["batch", 2])}, {"table": table})


def _infos(values: Mapping[str, tuple[DataType, Dims]]) -> list[Any]:
    return [helper.make_tensor_value_info(name, ONNX_TYPES[kind], dims) for name, (kind, dims) in values.items()]


@dataclass
class Served:
    """A loaded ONNX model with one instance."""

    config: ModelConfig
    spec: ModelSpec
    stats: ModelStats
    instance: Any
    sinks: list[Recorder] = field(default_factory=list)

    def request(
        self, inputs: Mapping[str, np.ndarray[Any, Any]], outputs: tuple[str, ...] | None = None
    ) -> InferRequest:
        """Shapes are the client's; BF16 arrays are `uint16` patterns."""
        specs = [(i, each) for i, each in enumerate(self.spec.inputs) if each.name in inputs]
        arrays = [inputs[each.name] for _, each in specs]
        shapes = tuple([array.shape for array in arrays])
        batching = self.spec.max_batch_size > 0
        form = RequestForm(
            head=RequestHead(self.spec.name),
            model=None,
            submit=lambda _: None,
            version=1,
            generation=0,
            inputs=tuple([i for i, _ in specs]),
            order=tuple(range(len(specs))),
            shapes=shapes,
            backend_shapes=tuple(
                [_backend_shape(s, each, batching) for s, (_, each) in zip(shapes, specs, strict=True)]
            ),
            sizes=tuple(
                [-1 if e.datatype is dtype.BYTES else a.nbytes for a, (_, e) in zip(arrays, specs, strict=True)]
            ),
            counts=tuple([array.size for array in arrays]),
            rows=shapes[0][0] if batching else 1,
            batch_key=None,
            outputs=outputs,
        )
        data = tuple([from_numpy(each.datatype, array) for array, (_, each) in zip(arrays, specs, strict=True)])
        return InferRequest(form, "", data, Recorder(), 1)

    def run(self, *requests: InferRequest) -> list[dict[str, Tensor] | InferError]:
        """Execute one batch; for each request its outputs by name, or its error."""
        self.instance.run(requests)
        return [_outcome(request) for request in requests]


def _backend_shape(shape: tuple[int, ...], spec: TensorSpec, batching: bool) -> tuple[int, ...]:
    if spec.reshape is None:
        return shape
    return (shape[:1] if batching else ()) + spec.reshape


def _outcome(request: InferRequest) -> dict[str, Tensor] | InferError:
    sink = request.sink
    assert isinstance(sink, Recorder)
    (settled,) = sink.finals()
    assert settled is request
    if sink.errors:
        return sink.errors[0][1]
    return {tensor.name: tensor for tensor in sink.replies[0][1].outputs}


def write(directory: Path, model: onnx.ModelProto | bytes, filename: str = "1/model.onnx") -> ModelFiles:
    path = directory / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return ModelFiles(directory, 1)


def make_host(settings: Mapping[str, str], cpus: int = 2) -> Host:
    loop = asyncio.new_event_loop()
    loop.close()
    return Host(loop, settings, cpus)


def serve(
    directory: Path,
    model: onnx.ModelProto | bytes,
    config: ModelConfig | None = None,
    placement: Placement | None = None,
    settings: Mapping[str, str] | None = None,
) -> Served:
    """Write, complete, load, and make one instance."""
    files = write(directory, model)
    config = config or ModelConfig()
    config.name = config.name or "m"
    config.backend = "onnxruntime"
    host = make_host(settings or {})
    backend = OnnxBackend()
    backend.complete(config, files, host)
    spec = make_spec(config)
    stats = ModelStats()
    loaded = backend.load(config, spec, files, host, stats)
    return Served(config, spec, stats, loaded.instance(placement or Placement("m_0_0", "CPU")))


def make_spec(config: ModelConfig) -> ModelSpec:
    return ModelSpec(
        config.name, 1, config.max_batch_size, tuple(map(_spec, config.input)), tuple(map(_spec, config.output))
    )


def _spec(entry: Any) -> TensorSpec:
    reshape = tuple(entry.reshape.shape) if entry.HasField("reshape") else None
    optional, ragged = getattr(entry, "optional", False), getattr(entry, "allow_ragged_batch", False)
    datatype = dtype.BY_NUMBER[entry.data_type]
    return TensorSpec(entry.name, datatype, tuple(entry.dims), optional, reshape, ragged=ragged)
