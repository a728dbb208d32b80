"""The JSON bodies of shared memory requests: register and status."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from conch.memory.cuda import HANDLE_SIZE, CudaRegion
from conch.memory.system import SystemRegion
from conch.protocol.v2.head import member, text, unsigned
from conch.protocol.v2.lenient import parse
from conch.types.error import invalid
from conch.types.tensor import Buffer

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class SystemSegment:
    """What a client wants to register: `byte_size` bytes from `offset` on of the segment `key`."""

    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaSegment:
    """`handle` is a cudaIpcMemHandle_t."""

    handle: bytes
    device_id: int
    byte_size: int


def read_system(body: Buffer) -> SystemSegment:
    """Raises InferError with Triton's texts."""
    root = parse(body)
    key = text(_required(root, "key"))
    offset = unsigned(root["offset"]) if "offset" in root else 0
    return SystemSegment(key, offset, unsigned(_required(root, "byte_size")))


def read_cuda(body: Buffer) -> CudaSegment:
    """Raises InferError with Triton's texts."""
    root = parse(body)
    coded = text(member(_required(root, "raw_handle"), "b64"))
    byte_size = unsigned(member(root, "byte_size"))
    device_id = unsigned(member(root, "device_id"))
    try:
        handle = base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != HANDLE_SIZE:
        raise invalid("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    return CudaSegment(handle, device_id, byte_size)


def write_system(regions: Iterable[SystemRegion]) -> bytes:
    return _encode(
        [{"name": each.name, "key": each.key, "offset": each.offset, "byte_size": each.byte_size} for each in regions]
    )


def write_cuda(regions: Iterable[CudaRegion]) -> bytes:
    return _encode([{"name": each.name, "device_id": each.device_id, "byte_size": each.byte_size} for each in regions])


def _required(root: Any, key: str) -> Any:
    if not isinstance(root, dict) or key not in root:
        raise invalid(f"Shared memory register request has no '{key}' field")
    return root[key]
