"""What programs have in their hands - arrays, lists, numbers, texts, tensors of frameworks - as inputs of a request."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conch.pb import grpc_service_pb2 as pb
from conch.types.dtype import ALL, BF16, BY_NAME, BYTES, DataType
from conch.types.error import invalid
from conch.types.request import InputHead
from conch.types.tensor import Buffer, from_numpy

#: numpy's type -> ours, for arrays whose type says all.
_BY_NUMPY = {each.numpy: each for each in ALL if each not in (BYTES, BF16)}

#: BF16 where numpy has no type for it: two bytes.
_HALF = np.dtype("V2")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An input as the model describes it: its data type, and how many dimensions it has with the batch's."""

    datatype: DataType
    rank: int


def encode(inputs: Mapping[str, Any], wanted: Mapping[str, Wanted]) -> tuple[list[InputHead], tuple[Buffer, ...]]:
    """The inputs' heads and wire bytes. `wanted` are the model's inputs.

    Arrays keep their type, so that a wrong one is refused as it would be on the wire; lists and numbers take the
    model's, and a single number or text is a tensor of one element. Raises InferError for what is no tensor.
    """
    heads, data = [], []
    for name, value in inputs.items():
        model = wanted.get(name)
        datatype, array = _read(name, value, None if model is None else model.datatype)
        if model is not None and not array.ndim and not hasattr(value, "shape"):
            array = array.reshape((1,) * model.rank)
        heads.append(InputHead(name, datatype.name, array.shape))
        data.append(from_numpy(datatype, array))
    return heads, tuple(data)


def wanted(model: pb.ModelMetadataResponse) -> dict[str, Wanted]:
    return {each.name: Wanted(BY_NAME[each.datatype], len(each.shape)) for each in model.inputs}


def _read(name: str, value: Any, wanted: DataType | None) -> tuple[DataType, np.ndarray[Any, Any]]:
    try:
        array = _from_framework(value)
    except (TypeError, RuntimeError, BufferError, ValueError, AttributeError) as error:
        raise invalid(
            f"input '{name}' is a {type(value).__module__}.{type(value).__name__} that cannot be read: {error}",
            "give a numpy array",
        ) from None
    if array is None:
        return _from_python(name, value, wanted)
    if array.dtype.kind in "OSU":
        return BYTES, array
    if wanted is BF16 and array.dtype == np.uint16:
        return BF16, array
    if array.dtype.name == "bfloat16" or array.dtype == _HALF:
        return BF16, array.view(BF16.numpy)
    datatype = _BY_NUMPY.get(array.dtype.newbyteorder("<"))
    if datatype is None:
        raise invalid(
            f"input '{name}' is an array of {array.dtype}, which is no tensor's type",
            "tensors are of bool, int8 to int64, uint8 to uint64, float16 to float64, or bytes",
        )
    return datatype, array


def _from_framework(value: Any) -> np.ndarray[Any, Any] | None:
    """numpy's own, and what gives its memory by DLPack or numpy's protocol; None for Python's own values."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (TypeError, RuntimeError, BufferError, ValueError):
            # On a GPU, with a gradient, or of a type that DLPack or numpy does not know.
            return _moved(value)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    return None


def _moved(value: Any) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # numpy has no such type, and takes the bits for what they are.
            value = value.view(sys.modules["torch"].int16)
            return np.asarray(value).view(_HALF)
    elif hasattr(value, "__cuda_array_interface__") and hasattr(value, "get"):
        # CuPy does not go to the host unless it is asked to.
        value = value.get()
    return np.asarray(value)


def _from_python(name: str, value: Any, wanted: DataType | None) -> tuple[DataType, np.ndarray[Any, Any]]:
    try:
        if wanted is BYTES or (wanted is None and _is_text(value)):
            # Never through numpy's own strings: those of fixed width lose zero bytes at the end.
            return BYTES, _texts(value)
        if wanted is BF16:
            return BF16, (np.asarray(value, dtype="<f4").view("<u4") >> 16).astype("<u2")
        if wanted is not None:
            return wanted, np.asarray(value, dtype=wanted.numpy)
        guessed = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = "a tensor" if wanted is None else f"a tensor of {wanted}"
        raise invalid(f"input '{name}' cannot be made {kind}: {error}", "give a numpy array") from None
    if guessed.dtype not in _BY_NUMPY:
        raise invalid(f"input '{name}' is {value!r:.80}, which is no tensor", "give a numpy array")
    return _BY_NUMPY[guessed.dtype], guessed


def _texts(value: Any) -> np.ndarray[Any, Any]:
    texts = np.array(value, dtype=object)
    if any(isinstance(each, list | tuple | np.ndarray) for each in texts.reshape(-1)):
        raise ValueError("its lists have different lengths")
    return texts


def _is_text(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, str | bytes)
