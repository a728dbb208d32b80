"""The streaming methods besides ModelStreamInfer: health that is watched, and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from conch.pb import health_pb2
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.protocol.v2.reflection import reflect
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_stream import DRAINING, Stream
from conch.types.error import InferError
from conch.types.tensor import Buffer

#: Seconds between looks at a health that is watched.
_LOOK_EVERY: Final = 0.5


class HealthWatch:
    """grpc.health.v1.Health/Watch: the state now, and whenever it changes."""

    __slots__ = ("_asked", "_last", "_serving", "_stream", "_timer")

    def __init__(self, stream: Stream, serving: Callable[[], bool]) -> None:
        self._stream = stream
        self._serving = serving
        self._asked = False
        self._last: bool | None = None
        self._timer: asyncio.TimerHandle | None = None

    def message(self, message: Buffer) -> None:
        if self._asked:
            raise GrpcFault(Status.INTERNAL, "the call takes one message, but more was sent")
        try:
            # The service's name is not looked at: all have one state.
            health_pb2.HealthCheckRequest.FromString(bytes(message))
        except DecodeError:
            raise GrpcFault(Status.INTERNAL, "Unable to parse request") from None
        self._asked = True
        self._look()

    def busy(self) -> bool:
        return False

    def ended(self) -> None:
        if not self._asked:
            raise GrpcFault(Status.INTERNAL, "the call has ended with no message")

    def drain(self) -> None:
        self._stream.finish(Status.UNAVAILABLE, DRAINING)

    def dropped(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._stream.said.loop.call_later(_LOOK_EVERY, self._look)
        serving = self._serving()
        if serving is not self._last:
            self._last = serving
            states = health_pb2.HealthCheckResponse
            raw = states(status=states.SERVING if serving else states.NOT_SERVING).SerializeToString()
            self._stream.send([raw], len(raw))


class Reflection:
    """ServerReflectionInfo: one answer to each question."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def message(self, message: Buffer) -> None:
        try:
            raw = reflect(message)
        except InferError as error:
            raise GrpcFault(STATUS[error.code], error.message) from error
        self._stream.send([raw], len(raw))

    def busy(self) -> bool:
        return False

    def ended(self) -> None:
        self._stream.finish()

    def drain(self) -> None:
        self._stream.finish(Status.UNAVAILABLE, DRAINING)

    def dropped(self) -> None:
        pass
