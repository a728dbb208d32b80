"""`server.model("m")`: one model to ask, at once, later, or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from conch.app import Server as App
from conch.library.answer import Answer
from conch.library.home import Home
from conch.library.stream import AsyncStream, Stream
from conch.library.tensors import Wanted, encode, wanted
from conch.library.waiting import Many, One
from conch.pb import grpc_service_pb2 as pb
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, unsupported
from conch.types.request import InferRequest, Parameter, RequestHead, ResponseSink


class Model:
    """Cheap to make; nothing is looked up before it is asked. Any thread."""

    def __init__(self, app: App, home: Home, name: str, version: str) -> None:
        self._app = app
        self._home = home
        self.name = name
        #: As it was asked for; empty for the highest that is ready.
        self.version = version
        self._generation = -1
        self._wanted: dict[str, Wanted] = {}

    def ready(self) -> bool:
        """False also for a model that is not there."""
        try:
            return self._app.data.model_ready(self.name, self.version)
        except InferError:
            return False

    def metadata(self) -> pb.ModelMetadataResponse:
        return self._app.data.metadata(self.name, self.version)

    def config(self) -> ModelConfig:
        """A copy."""
        copy = ModelConfig()
        copy.CopyFrom(self._app.data.config(self.name, self.version))
        return copy

    def statistics(self) -> pb.ModelStatisticsResponse:
        return self._app.data.statistics(self.name, self.version)

    def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Ask and wait, at most `timeout` seconds: then TimeoutError. Inputs have the batch dimension if there is one.

        `parameters` may steer the server: `priority`, `sequence_id`, `sequence_start`, `sequence_end`.
        """
        self._home.check_waiting()
        sink = One()
        request = self._request(inputs, outputs, parameters, id, sink)
        self._begin(request, timeout)
        return self._wait(request, sink, timeout)

    def submit(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
    ) -> Future[Answer]:
        """Ask and go on; cancelling the future withdraws the request.

        What is refused raises here; what fails later is the future's.
        """
        sink = One()
        request = self._request(inputs, outputs, parameters, id, sink)
        future = sink.future
        future.withdraw = lambda: self._home.withdraw(request)
        try:
            self._begin(request, None)
        except BaseException:
            future.withdraw = None
            raise
        return future

    async def infer_async(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """As `infer` for the program's own event loop; cancelling it withdraws the request."""
        sink = One()
        request = self._request(inputs, outputs, parameters, id, sink)
        self._begin(request, timeout)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(sink.future), timeout)
        except InferError as error:
            raise _late(error, request) from None
        except BaseException:
            # Too late, cancelled, or its event loop has ended.
            self._home.withdraw(request)
            raise

    def stream(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
        timeout: float | None = None,
    ) -> Stream:
        """All answers, of decoupled models any number; `timeout` is for each. Leaving the loop, `close`,
        and forgetting it before the first answer withdraw the request.

        What is refused raises here, before the first answer is asked for.
        """
        sink = Many(self._home.post)
        request = self._request(inputs, outputs, parameters, id, sink)
        self._begin_stream(request, sink)
        return Stream(self._home, request, sink, timeout)

    def stream_async(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        parameters: Mapping[str, Parameter] | None = None,
        id: str = "",
    ) -> AsyncStream:
        """As `stream` for the program's own event loop."""
        sink = Many(self._home.post)
        request = self._request(inputs, outputs, parameters, id, sink)
        self._begin_stream(request, sink)
        return AsyncStream(self._home, request, sink)

    # ---- one answer

    def _begin(self, request: InferRequest, timeout: float | None) -> None:
        if request.form.decoupled:
            raise unsupported(
                f"model '{self.name}' is decoupled: it may answer any number of times", "use stream() or stream_async()"
            )
        if timeout is not None:
            request.expires_ns = request.received_ns + round(timeout * 1e9)
        self._app.data.infer(request)

    def _wait(self, request: InferRequest, sink: One, timeout: float | None) -> Answer:
        try:
            return sink.future.result(timeout)
        except InferError as error:
            raise _late(error, request) from None
        except BaseException:
            # Too late, or the program is being interrupted.
            self._home.withdraw(request)
            sink.future.cancel()
            raise

    # ---- many answers

    def _begin_stream(self, request: InferRequest, sink: Many) -> None:
        request.flow = sink.flow
        self._app.data.infer(request)

    # ---- both

    def _request(
        self,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter] | None,
        id: str,
        sink: ResponseSink,
    ) -> InferRequest:
        self._home.check()
        data = self._app.data
        if self._generation != data.generation:
            generation = data.generation
            self._wanted = wanted(self.metadata())
            self._generation = generation
        heads, parts = encode(inputs, self._wanted)
        head = RequestHead(self.name, self.version, id, heads, tuple(outputs), dict(parameters or {}))
        form = data.prepare(head)
        ordered = tuple([parts[index] for index in form.order])
        return InferRequest(form, id, ordered, sink, time.monotonic_ns())


def _late(error: InferError, request: InferRequest) -> BaseException:
    """The request's time was over while it waited for an instance: for the program that is one and the same."""
    expired = request.expires_ns and time.monotonic_ns() >= request.expires_ns
    return TimeoutError(error.message) if expired and error.code in (Code.UNAVAILABLE, Code.CANCELLED) else error
