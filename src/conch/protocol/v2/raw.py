"""Raw binary requests: a body without JSON, whose tensor is worked out from the model's only input."""

from __future__ import annotations

import math
import struct
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.protocol.v2.head import Input
from conch.types.dtype import BY_NUMBER, BYTES
from conch.types.error import invalid
from conch.types.request import id_prefix
from conch.types.tensor import Buffer

#: A raw request cannot carry an id.
_UNKNOWN: Final = id_prefix("")


def input_of(model: str, config: ModelConfig, body: Buffer) -> tuple[Input, Buffer]:
    """The input that `body` is, as a client would have described it, and its wire bytes. Raises InferError."""
    if len(config.input) != 1:
        raise invalid(
            _UNKNOWN + f"Raw request must only have 1 input (found 1) to be deduced but got {len(config.input)} "
            f"inputs in '{model}' model configuration"
        )
    only = config.input[0]
    datatype = BY_NUMBER[only.data_type]
    dims = list(only.dims)
    if datatype is BYTES:
        if dims not in ([1], [-1]):
            raise invalid(_UNKNOWN + f"For BYTE datatype raw input '{only.name}', the model must have input shape [1]")
        dims = [1]
        body = struct.pack("<I", len(body)) + bytes(body)
    elif dims.count(-1) > 1:
        raise invalid(
            _UNKNOWN + f"The shape of the raw input '{only.name}' can not be deduced because there are more than one "
            "variable-sized dimension"
        )
    elif -1 in dims:
        row = datatype.size * math.prod([dim for dim in dims if dim != -1])
        dims[dims.index(-1)] = len(body) // row if row else 0
    shape = (1, *dims) if config.max_batch_size > 0 else tuple(dims)
    return Input(only.name, datatype.name, shape, {"binary_data_size": len(body)}), body
