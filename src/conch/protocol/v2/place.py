"""Where a tensor lies or goes when it does not travel in the message: a part of a registered region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conch.pb import grpc_service_pb2 as pb
from conch.types.error import InferError, invalid

REGION: Final = "shared_memory_region"
OFFSET: Final = "shared_memory_offset"
BYTE_SIZE: Final = "shared_memory_byte_size"


@dataclass(frozen=True, slots=True)
class Place:
    """`byte_size` bytes of the region of this name, from `offset` on. Not checked: regions come and go."""

    region: str
    offset: int
    byte_size: int


def grpc_place(tensor: str, parameters: Mapping[str, pb.InferParameter]) -> Place | None:
    """The place that an input's or output's parameters name; None where they name none. Raises InferError."""
    region = parameters.get(REGION)
    if region is not None and region.WhichOneof("parameter_choice") != "string_param":
        raise _wrong_type(tensor, REGION, "string_param")
    numbers: dict[str, int] = {}
    for key in (OFFSET, BYTE_SIZE):
        given = parameters.get(key)
        if given is None:
            continue
        if region is None:
            raise invalid(f"'{key}' can not be specified without '{REGION}' parameter for tensor '{tensor}'")
        if given.WhichOneof("parameter_choice") != "int64_param":
            raise _wrong_type(tensor, key, "int64_param")
        numbers[key] = given.int64_param
    if region is None:
        return None
    if BYTE_SIZE not in numbers:
        raise invalid(f"'{BYTE_SIZE}' must be specified along with '{REGION}' parameter for tensor '{tensor}'")
    return Place(region.string_param, numbers.get(OFFSET, 0), numbers[BYTE_SIZE])


def _wrong_type(tensor: str, key: str, expected: str) -> InferError:
    return invalid(f"invalid value type for '{key}' parameter for tensor '{tensor}', expected {expected}.")
