"""What a model answered, as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conch.types.dtype import BF16
from conch.types.request import InferRequest, Parameter
from conch.types.response import InferResponse
from conch.types.tensor import Tensor, to_numpy


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One response; its outputs are also to be had as `answer["y"]`.

    BYTES are arrays of `bytes`; BF16 arrives as FP32, which holds it exactly. Arrays may be views: they cannot be
    written to.
    """

    model: str
    version: int
    id: str
    outputs: Mapping[str, np.ndarray[Any, Any]]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f"model '{self.model}' gave no output '{name}', it gave {list(self.outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)


def read(request: InferRequest, response: InferResponse) -> Answer:
    form = request.form
    outputs = {tensor.name: _array(tensor) for tensor in response.outputs}
    return Answer(form.model.spec.name, form.version, request.id, outputs, dict(response.parameters or {}))


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array = to_numpy(tensor.datatype, tensor.shape, tensor.data)
    if tensor.datatype is BF16:
        return (array.astype("<u4") << 16).view("<f4")
    return array
