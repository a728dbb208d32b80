"""Metadata that become parameters of inference requests (`--grpc-header-forward-pattern`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.service.api import DataPlane
from conch.transport.http2_headers import Header
from conch.types.error import invalid
from conch.types.request import RequestForm, RequestHead

_RESERVED: Final = {
    "sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output",
}  # fmt: skip
#: What gRPC keeps to itself.
_OWN: Final = re.compile(r":.*|grpc-.*|content-type|te")


class Forwarded:
    """The metadata of one header list that the pattern takes, in the order in which they came."""

    __slots__ = ("fields", "key", "reserved")

    def __init__(self, fields: dict[str, str]) -> None:
        self.fields = fields
        #: Equal for equal metadata.
        self.key = tuple(fields.items())
        #: The first name that no client may set this way; empty without one.
        self.reserved = next((name for name in fields if name in _RESERVED or name.startswith("triton_")), "")


def forwarded(pattern: re.Pattern[str], headers: list[Header]) -> Forwarded | None:
    """`pattern` is searched in names, which are lower case; None when it takes none."""
    fields = {}
    for raw, value in headers:
        name = raw.decode("ascii", "replace")
        if pattern.search(name) and not _OWN.fullmatch(name):
            fields[name] = value.decode("utf-8", "replace")
    return Forwarded(fields) if fields else None


class ForwardingPlane:
    """The data plane as a codec sees it, for calls with such metadata: their parameters are put into the head."""

    __slots__ = ("_forwarded", "_plane")

    def __init__(self, plane: DataPlane, forwarded: Forwarded) -> None:
        self._plane = plane
        self._forwarded = forwarded

    @property
    def generation(self) -> int:
        return self._plane.generation

    def prepare(self, head: RequestHead) -> RequestForm:
        """Raises InferError (INVALID_ARG) for reserved names."""
        forwarded = self._forwarded
        if forwarded.reserved:
            raise invalid(f"Header '{forwarded.reserved}' is reserved for Triton usage and cannot be forwarded.")
        head.parameters = {**head.parameters, **forwarded.fields}
        return self._plane.prepare(head)

    def model_ready(self, name: str, version: str) -> bool:
        return self._plane.model_ready(name, version)

    def config(self, name: str, version: str) -> ModelConfig:
        return self._plane.config(name, version)

    def labels(self, name: str, version: str, output: str) -> Sequence[bytes]:
        return self._plane.labels(name, version, output)
