"""What an ONNX model says of its own inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from conch.backend.signature import Signature, Slot
from conch.types import dtype
from conch.types.dtype import DataType
from conch.types.error import InferError, unsupported

#: ONNX's element types by the names that ONNX Runtime prints.
DATATYPES: Final[Mapping[str, DataType]] = {
    "tensor(bool)": dtype.BOOL,
    "tensor(uint8)": dtype.UINT8,
    "tensor(uint16)": dtype.UINT16,
    "tensor(uint32)": dtype.UINT32,
    "tensor(uint64)": dtype.UINT64,
    "tensor(int8)": dtype.INT8,
    "tensor(int16)": dtype.INT16,
    "tensor(int32)": dtype.INT32,
    "tensor(int64)": dtype.INT64,
    "tensor(float16)": dtype.FP16,
    "tensor(float)": dtype.FP32,
    "tensor(double)": dtype.FP64,
    "tensor(string)": dtype.BYTES,
    "tensor(bfloat16)": dtype.BF16,
}

_CONTAINERS: Final = {
    "seq": ("ONNX_TYPE_SEQUENCE", "export scikit-learn classifiers with options={'zipmap': False}"),
    "map": ("ONNX_TYPE_MAP", "export scikit-learn classifiers with options={'zipmap': False}"),
    "sparse_tensor": ("ONNX_TYPE_SPARSETENSOR", "make the tensor dense"),
    "optional": ("ONNX_TYPE_OPTIONAL", "make the tensor mandatory"),
}


def read_signature(model: str, session: Any) -> Signature:
    """The signature of an `onnxruntime.InferenceSession`. Raises InferError for anything that is no plain tensor."""
    return Signature(
        read_slots(model, session.get_inputs()),
        read_slots(model, session.get_outputs()),
        read_slots(model, session.get_overridable_initializers()),
    )


def read_slots(model: str, arguments: Iterable[Any]) -> tuple[Slot, ...]:
    """`arguments` have `name`, `type` (ONNX Runtime's text) and `shape` (sizes; names or None stand for any size)."""
    return tuple([Slot(each.name, _datatype(model, each.name, each.type), _shape(each.shape)) for each in arguments])


def _shape(shape: Iterable[object]) -> tuple[int, ...]:
    return tuple([size if isinstance(size, int) and size >= 0 else -1 for size in shape])


def _datatype(model: str, name: str, text: str) -> DataType:
    datatype = DATATYPES.get(text)
    if datatype is not None:
        return datatype
    container = _CONTAINERS.get(text.partition("(")[0])
    if container is not None:
        kind, hint = container
        raise unsupported(f"Unsupported ONNX Type '{kind}' for I/O '{name}', expected 'ONNX_TYPE_TENSOR'.", hint)
    raise _no_equivalent(model, name, text)


def _no_equivalent(model: str, name: str, text: str) -> InferError:
    return unsupported(
        f"unsupported datatype {text} for I/O '{name}' of model '{model}': the inference protocol has no such type",
        f"cast '{name}' to one of {', '.join(each.removeprefix('tensor(')[:-1] for each in DATATYPES)} in the model",
    )
