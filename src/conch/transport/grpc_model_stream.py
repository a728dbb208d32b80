"""ModelStreamInfer: a stream of requests, each with a sink of its own, answered in order or as the answers come."""

from __future__ import annotations

import logging
import time
from typing import ClassVar, Final

from conch.protocol.v2 import grpc_stream as wire
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.protocol.v2.stream_order import Line, Turn
from conch.service.api import DataPlane
from conch.transport.bridge import Bridge
from conch.transport.grpc_call import Said, cancel, unwritable
from conch.transport.grpc_fault import GrpcFault
from conch.transport.grpc_stream import DRAINING, Stream
from conch.types.error import InferError, internal
from conch.types.request import InferRequest
from conch.types.response import FINAL, FailedResponse, InferResponse
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

#: Requests of one stream that may be on their way at once, and their bytes and those of answers that wait for others;
#: what is more stays in the peer's windows.
_MAX_REQUESTS: Final = 4096
_MAX_BYTES: Final = 64 << 20
#: What an answer that waits costs besides its bytes.
_ANSWER_BYTES: Final = 512

#: What leaves the line: a message in pieces and its size, or the error of a model and its message.
_Answer = tuple[list[Buffer], int, InferError | None]
_monotonic_ns = time.monotonic_ns


class Sink:
    """Where the answers to one request of a stream go. Any thread."""

    protocol: ClassVar[str] = "GRPC"

    __slots__ = ("early", "request", "size", "talk", "turn")

    def __init__(self, talk: ModelStream, size: int) -> None:
        self.talk = talk
        #: Bytes of the request.
        self.size = size
        self.request: InferRequest | None = None
        #: Its place in the line; None for decoupled models.
        self.turn: Turn[_Answer] | None = None
        #: Responses before the last one, where there must be only one.
        self.early = 0

    @property
    def trace_context(self) -> str:
        return self.talk.said.trace_context

    @property
    def trace_state(self) -> str:
        return self.talk.said.trace_state

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        talk = self.talk
        if talk.bridge.on_loop():
            talk.reply(self, request, response, final)
        else:
            talk.bridge.post(talk.reply, self, request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        talk = self.talk
        if talk.bridge.on_loop():
            talk.fail(self, request, error)
        else:
            talk.bridge.post(talk.fail, self, request, error)


class ModelStream:
    """The conversation of one ModelStreamInfer call. Loop thread only."""

    __slots__ = (
        "_active", "_bytes", "_closing", "_codec", "_data", "_line", "_refused_some", "_refusing", "_stream", "bridge",
    )  # fmt: skip

    def __init__(self, stream: Stream, data: DataPlane, bridge: Bridge) -> None:
        assert stream.connection is not None
        self.bridge = bridge
        self._data = data
        self._stream = stream
        self._codec = stream.connection.state.special_codec(True, stream.said.forwarded)
        self._active: set[Sink] = set()
        #: Of requests on their way, and of answers in the line.
        self._bytes = 0
        self._line: Line[_Answer] = Line()
        #: The client has said all it had to say; or we take no more of it, and have thrown away what it said.
        self._closing = False
        self._refusing = False
        self._refused_some = False

    @property
    def said(self) -> Said:
        return self._stream.said

    # -- the stream's side

    def message(self, message: Buffer) -> None:
        if self._refusing:
            self._refused_some = True
            return
        sink = Sink(self, len(message))
        try:
            request = self._codec.decode_infer(message, sink, _monotonic_ns())
            deadline = self._stream.deadline
            if deadline is not None:
                request.expires_ns = deadline.expires_ns
            request.flow = self._stream.flow
            sink.request = request
            if not request.form.decoupled:
                sink.turn = self._line.join()
            self._active.add(sink)
            self._bytes += sink.size
            self._data.infer(request)
        except InferError as error:
            self._refused(sink, error, message)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            _log.error("a request of a gRPC stream failed inside the server", exc_info=error)
            text = f"the server failed to handle the request: {type(error).__name__}"
            self._refused(sink, internal(text), message)

    def busy(self) -> bool:
        return len(self._active) >= _MAX_REQUESTS or self._bytes > _MAX_BYTES

    def ended(self) -> None:
        self._closing = True
        if not self._active:
            self._finish()

    def drain(self) -> None:
        self._refusing = True
        if not self._active:
            self._finish()

    def dropped(self) -> None:
        active, self._active = self._active, set()
        self._bytes = 0
        for sink in active:
            request, sink.request = sink.request, None
            if request is not None:
                cancel(request)

    # -- the sinks' side

    def reply(self, sink: Sink, request: InferRequest, response: InferResponse, final: bool) -> None:
        if sink not in self._active:
            return
        turn = sink.turn
        if turn is not None and (not final or sink.early or response is FINAL):
            self._wrong_count(sink, request, response, final)
            return
        if response is FINAL:
            if wire.wants_empty_final(request):
                raw = wire.encode_empty_final(request)
                self._stream.send([raw], len(raw))
        elif isinstance(response, FailedResponse):
            raw = wire.encode_late_error(response.error.message, request, final)
            self._say(([raw], len(raw), response.error))
        else:
            try:
                parts, size = wire.encode_response(self._codec, request, response, final)
            except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
                self.fail(sink, request, error if isinstance(error, InferError) else unwritable(error))
                if not final:
                    cancel(request)
                return
            if turn is not None:
                self._leave(turn, (parts, size, None))
            else:
                self._stream.send(parts, size)
        if final:
            self._done(sink)

    def fail(self, sink: Sink, request: InferRequest, error: InferError) -> None:
        if sink not in self._active:
            return
        raw = wire.encode_late_error(error.message, request)
        answer: _Answer = ([raw], len(raw), error)
        if sink.turn is not None:
            self._leave(sink.turn, answer)
        else:
            self._say(answer)
        self._done(sink)

    # -- inside

    def _refused(self, sink: Sink, error: InferError, message: Buffer) -> None:
        """The request has not come as far as its model. Such an error never ends the stream."""
        try:
            raw = wire.encode_early_error(error.message, message)
        except ValueError:
            self._forget(sink)
            raise GrpcFault(STATUS[error.code], error.message) from error
        # Whether the model is decoupled is not known where there is none; such errors keep the order.
        request = sink.request
        if request is None or not request.form.decoupled:
            self._leave(sink.turn or self._line.join(), ([raw], len(raw), None))
        else:
            self._stream.send([raw], len(raw))
        self._forget(sink)

    def _wrong_count(self, sink: Sink, request: InferRequest, response: InferResponse, final: bool) -> None:
        """A model that must answer once has not, or not only once."""
        if response is not FINAL:
            sink.early += 1
        if final:
            self.fail(sink, request, internal(f"expected a single response, got {sink.early}"))

    def _leave(self, turn: Turn[_Answer], answer: _Answer) -> None:
        self._bytes += answer[1] + _ANSWER_BYTES
        for each in self._line.settle(turn, answer):
            self._bytes -= each[1] + _ANSWER_BYTES
            self._say(each)

    def _say(self, answer: _Answer) -> None:
        parts, size, error = answer
        if error is not None and self._stream.said.errors_end:
            self._stream.finish(STATUS[error.code], error.message)
        else:
            self._stream.send(parts, size)

    def _done(self, sink: Sink) -> None:
        self._forget(sink)
        if not self._active and (self._closing or self._refusing):
            self._finish()
        elif self._stream.full:
            self._stream.resume()

    def _finish(self) -> None:
        """All answers have been given, and no more requests are taken."""
        if self._closing and not self._refused_some:
            self._stream.finish()
        else:
            self._stream.finish(Status.UNAVAILABLE, DRAINING)

    def _forget(self, sink: Sink) -> None:
        # Together with the request's own reference it would be a cycle.
        sink.request = None
        if sink in self._active:
            self._active.remove(sink)
            self._bytes -= sink.size
