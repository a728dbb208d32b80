"""A ModelInferRequest taken apart: the long way, for messages whose like has not been seen yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.place import REGION, Place, grpc_place
from conch.types.dtype import BY_NAME, BYTES, DataType
from conch.types.error import InferError, internal, invalid
from conch.types.request import InputHead, Parameter, RequestHead
from conch.types.tensor import Buffer, join_bytes

#: Top-level field: number, start, start of the value, end. Of length-delimited fields only.
Field = tuple[int, int, int, int]

RAW_INPUT_CONTENTS: Final = 7
_LENGTH_DELIMITED: Final = 2
#: Above this many top-level fields a message is left to protobuf's own parser.
_MAX_FIELDS: Final = 4096
#: The one reserved parameter that clients may send: it asks a stream for a message at the end of each request.
ONLY_TRITON_KEY: Final = "triton_enable_empty_final_response"
_UNSIGNED: Final = (1 << 64) - 1
#: Field of InferTensorContents, Triton's name of what it holds, and the data types that it may be sent for.
_CONTENTS: Final = (
    ("bool_contents", "BOOL", ("BOOL",)),
    ("int_contents", "INT32", ("INT8", "INT16", "INT32")),
    ("int64_contents", "INT64", ("INT64",)),
    ("uint_contents", "UINT32", ("UINT8", "UINT16", "UINT32")),
    ("uint64_contents", "UINT64", ("UINT64",)),
    ("fp32_contents", "FP32", ("FP32",)),
    ("fp64_contents", "FP64", ("FP64",)),
    ("bytes_contents", "BYTES", ("BYTES",)),
)


def varint(value: int) -> bytes:
    """Base-128, least significant group first."""
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(message: Buffer, at: int, end: int) -> tuple[int, int]:
    """The value at `at` and where it ends. Raises ValueError when it runs past `end` or is longer than 64 bits."""
    value = shift = 0
    while at < end and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a varint is too long or cut off")


def walk(message: Buffer) -> list[Field] | None:
    """The top-level fields, when all are length-delimited and well-formed; else None."""
    fields: list[Field] = []
    at, end = 0, len(message)
    try:
        while at < end:
            start = at
            tag, at = read_varint(message, at, end)
            if tag & 7 != _LENGTH_DELIMITED or tag < 8 or len(fields) >= _MAX_FIELDS:
                return None
            size, at = read_varint(message, at, end)
            if size > end - at:
                return None
            fields.append((tag >> 3, start, at, at + size))
            at += size
    except ValueError:
        return None
    return fields


def parse(message: Buffer, fields: Sequence[Field] | None) -> tuple[pb.ModelInferRequest, list[Buffer]]:
    """The message without its raw inputs, and these as views. Raises InferError (INTERNAL) in Triton's words."""
    try:
        if fields is None:
            parsed = pb.ModelInferRequest.FromString(bytes(message))
            return parsed, list(parsed.raw_input_contents)
        view = memoryview(message)
        rest = b"".join([view[start:end] for number, start, _, end in fields if number != RAW_INPUT_CONTENTS])
        raw = [view[value:end] for number, _, value, end in fields if number == RAW_INPUT_CONTENTS]
        return pb.ModelInferRequest.FromString(rest), list(raw)
    except DecodeError as error:
        raise unparsable() from error


def unparsable() -> InferError:
    return internal("Unable to parse request", "the message is not the protobuf message that this method takes")


def head_of(message: pb.ModelInferRequest) -> RequestHead:
    """Raises InferError (INVALID_ARG) for parameters of the wrong kind."""
    return RequestHead(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=[InputHead(each.name, each.datatype, tuple(each.shape)) for each in message.inputs],
        outputs=[each.name for each in message.outputs],
        parameters=_parameters(message.parameters),
    )


def output_wishes(
    outputs: Iterable[pb.ModelInferRequest.InferRequestedOutputTensor],
) -> tuple[dict[str, int], dict[str, Place]]:
    """How many classes of which output are asked for, and which output goes where.

    Other parameters of outputs and inputs have no meaning in Triton, which takes and ignores them.
    """
    classes: dict[str, int] = {}
    places: dict[str, Place] = {}
    for output in outputs:
        parameters = output.parameters
        if not parameters:
            continue
        place = grpc_place(output.name, parameters)
        if place is not None:
            places[output.name] = place
        if "classification" in parameters:
            if parameters["classification"].WhichOneof("parameter_choice") != "int64_param":
                raise invalid("invalid value type for 'classification' parameter, expected int64_param")
            if parameters["classification"].int64_param <= 0:
                raise invalid("invalid value for 'classification' parameter, expected >= 0")
            if place is not None:
                raise invalid(f"output can't set both '{REGION}' and 'classification'")
            classes[output.name] = parameters["classification"].int64_param
    return classes, places


def input_places(message: pb.ModelInferRequest) -> list[Place | None]:
    """Where each input lies that is in a registered region, in the client's order. Raises InferError."""
    return [grpc_place(each.name, each.parameters) if each.parameters else None for each in message.inputs]


def input_data(message: pb.ModelInferRequest, raw: Sequence[Buffer], places: Sequence[Place | None]) -> list[Buffer]:
    """The wire bytes of each input, in the client's order; nothing for those that have a place. Raises InferError."""
    model, data = message.model_name, list[Buffer]()
    used = 0
    for tensor, place in zip(message.inputs, places, strict=True):
        typed = tensor.HasField("contents")
        if place is not None:
            if typed:
                raise invalid(
                    f"unexpected 'content' provided when using shared memory for input tensor '{tensor.name}' for "
                    f"model '{model}'"
                )
            data.append(b"")
            continue
        if raw and typed:
            raise invalid(
                "contents field must not be specified when using raw_input_contents for "
                f"'{tensor.name}' for model '{model}'"
            )
        if used < len(raw):
            data.append(raw[used])
            used += 1
        elif typed:
            data.append(_typed_data(tensor, model))
        else:
            raise invalid(f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.")
    if len(raw) > used and used == len(message.inputs) > 0:
        raise invalid(
            f"expected {used} raw_input_contents for model '{model}', one per input, got {len(raw)}",
            "send one raw_input_contents per input, in the order of the inputs",
        )
    return data


def _typed_data(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> Buffer:
    contents = tensor.contents
    datatype = BY_NAME.get(tensor.datatype)
    data: Buffer = b""
    for field, kind, takes in _CONTENTS:
        values = getattr(contents, field)
        if not values:
            continue
        if datatype is None or datatype.name not in takes:
            raise invalid(
                f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}' of type "
                f"'{kind}', expected datatype '{'<invalid>' if datatype is None else datatype.name}'"
            )
        data = _wire(datatype, values)
    return data


def _wire(datatype: DataType, values: Any) -> Buffer:
    if datatype is BYTES:
        return join_bytes(values)
    wide = np.dtype("<i4") if datatype.name in ("INT8", "INT16") else np.dtype("<u4")
    if datatype.name in ("INT8", "INT16", "UINT8", "UINT16"):
        # Narrowed as in C: the upper bits are dropped.
        return np.array(values, dtype=wide).astype(datatype.numpy).tobytes()
    return np.array(values, dtype=datatype.numpy).tobytes()


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    if not given:
        return {}
    parameters: dict[str, Parameter] = {}
    for key, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        value: Parameter = getattr(parameter, kind) if kind else ""
        _check_parameter(key, kind, value)
        if key in ("timeout", "sequence_id") and isinstance(value, int):
            # Triton keeps these unsigned; a negative number wraps around.
            value &= _UNSIGNED
        parameters[key] = value
    return parameters


def _check_parameter(key: str, kind: str | None, value: Parameter) -> None:
    expected = _EXPECTED.get(key)
    if expected is None:
        if key.startswith("triton_"):
            raise invalid(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {ONLY_TRITON_KEY}"
            )
        expected = _CUSTOM
    kinds, text = expected
    if kind not in kinds:
        raise invalid(f"invalid value type for '{key}' parameter, expected {text}.")
    if key == "priority" and isinstance(value, int) and value < 0:
        raise invalid("invalid value for 'priority', expected value >= 0.")


_CUSTOM: Final = (
    ("int64_param", "bool_param", "string_param", "double_param"),
    "int64_param, bool_param, or string_param",
)
_EXPECTED: Final = {
    "sequence_id": (("int64_param", "string_param"), "int64_param or string_param"),
    "sequence_start": (("bool_param",), "bool_param"),
    "sequence_end": (("bool_param",), "bool_param"),
    "priority": (("int64_param", "uint64_param"), "int64_param or uint64_param"),
    "timeout": (("int64_param",), "int64_param"),
    ONLY_TRITON_KEY: (("bool_param",), "bool_param"),
}
