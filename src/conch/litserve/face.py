"""The HTTP face of `LitServer`: its endpoints, over the data plane."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import orjson

from conch.litserve.program import HEADERS, KIND, REQUEST, STATUS
from conch.service.api import DataPlane
from conch.transport.bridge import Bridge
from conch.transport.heads import BadRequestError, Head
from conch.transport.http1 import Connection, head_of, status_line
from conch.transport.listener import HttpFace, Listener
from conch.types.error import Code, InferError
from conch.types.flow import Flow
from conch.types.request import InferRequest, InputHead, RequestHead
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Buffer, join_bytes, split_bytes

_log = logging.getLogger("conch.litserve")

_JSON: Final = "application/json"
_TIMEOUT: Final = 60.0
_MAX_BODY: Final = 1 << 30
#: Answers that have no body; clients would take one for the next answer (RFC 9110, 6.4.1).
_BARE: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One API: `model` answers `path`. `timeout` is seconds in the queue, 0 for no end."""

    path: str
    model: str
    batches: bool
    streams: bool
    timeout: float
    health: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class FaceOptions:
    address: str
    port: int
    health_path: str
    info_path: str
    info: Mapping[str, Any]
    max_body: int = 0
    #: What requests must have as X-API-Key; empty for nothing.
    key: str = ""


class LitFace(HttpFace):
    """Implements `transport.api.Transport`."""

    title = "LitServer"

    def __init__(self, options: FaceOptions, endpoints: list[Endpoint], data: DataPlane, bridge: Bridge) -> None:
        self._options = options
        self._endpoints = {each.path: each for each in endpoints}
        self._data = data
        self._bridge = bridge
        self._listener = Listener(
            options.address, options.port, route=self._route, handle=self._handle, lost=_lost, timeout=_TIMEOUT
        )

    def _route(self, head: Head) -> None:
        limit = self._options.max_body or _MAX_BODY
        if head.length > limit:
            raise BadRequestError(413, f"the request body exceeds the limit of {limit} bytes")
        head.limit = limit

    def _handle(self, connection: Connection, head: Head, body: Buffer) -> None:
        try:
            self._answer(connection, head, body)
        except InferError as error:
            _refuse(connection, *_status(error))
        except Exception:  # noqa: BLE001  neither this client nor the others may be left waiting
            _log.exception("a request to %s could not be handled", head.path)
            _refuse(connection, 500, "Internal Server Error")

    def _answer(self, connection: Connection, head: Head, body: Buffer) -> None:
        path, options = head.path, self._options
        endpoint = self._endpoints.get(path)
        if endpoint is None and path not in ("/", options.health_path, options.info_path):
            _refuse(connection, 404, "Not Found")
        elif head.method != ("GET" if endpoint is None else "POST"):
            _refuse(connection, 405, "Method Not Allowed")
        elif options.key and not hmac.compare_digest(head.headers.get("x-api-key", "").encode(), options.key.encode()):
            _refuse(
                connection, 401, "Invalid API Key. Check that you are passing a correct 'X-API-Key' in your header."
            )
        elif endpoint is not None:
            self._predict(connection, endpoint, head, body)
        elif path == options.info_path:
            _respond(connection, 200, _JSON, orjson.dumps(options.info))
        elif path == options.health_path:
            well = self._data.ready() and all(each.health() for each in self._endpoints.values())
            _respond(connection, 200 if well else 503, "text/plain; charset=utf-8", b"ok" if well else b"not ready")
        else:
            _respond(connection, 200, "text/plain; charset=utf-8", b"litserve running")

    def _predict(self, connection: Connection, endpoint: Endpoint, head: Head, body: Buffer) -> None:
        shape = (1, 1) if endpoint.batches else (1,)
        inputs = [InputHead(REQUEST, "BYTES", shape), InputHead(KIND, "BYTES", shape)]
        form = self._data.prepare(RequestHead(endpoint.model, inputs=inputs))
        kind = head.headers.get("content-type", _JSON)
        parts = (join_bytes([bytes(body)]), join_bytes([kind.encode("latin-1")]))
        reply = _Reply(connection, self._bridge, endpoint)
        request = InferRequest(form, "", tuple([parts[index] for index in form.order]), reply, time.monotonic_ns())
        if endpoint.timeout:
            request.expires_ns = request.received_ns + round(endpoint.timeout * 1e9)
        reply.request = request
        request.flow = reply.flow if endpoint.streams else None
        connection.exchange = reply
        try:
            self._data.infer(request)
        except BaseException:
            connection.exchange = None
            raise


class _Reply:
    """Implements `types.request.ResponseSink` for one request. Any thread may answer."""

    protocol: ClassVar[str] = "HTTP"

    def __init__(self, connection: Connection, bridge: Bridge, endpoint: Endpoint) -> None:
        self._connection = connection
        self._bridge = bridge
        self._streams = endpoint.streams
        self._begun = False
        self.flow = Flow()
        self.request: InferRequest | None = None

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if self._bridge.on_loop():
            self._reply(response, final)
        else:
            self._bridge.post(self._reply, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        if self._bridge.on_loop():
            self._fail(error)
        else:
            self._bridge.post(self._fail, error)

    def cancel(self) -> None:
        """The client has left."""
        request, self.request = self.request, None
        if request is not None:
            request.form.withdraw(request)
        self.flow.release()

    def _reply(self, response: InferResponse, final: bool) -> None:
        if self.request is None:
            return
        said = response.parameters or {}
        status, kind = int(said.get(STATUS, 200)), str(said.get(KIND, _JSON))
        data = b"" if response is FINAL else split_bytes(response.outputs[0].data)[0]
        if not self._streams or (status != 200 and not self._begun):
            self._end()
            _respond(self._connection, status, kind, data, said.get(HEADERS))
            return
        self._begin()
        if data:
            self._connection.send(data)
            self._bridge.dirty(self._connection)
        if final:
            self._end()
            self._connection.finish()

    def _fail(self, error: InferError) -> None:
        if self.request is None:
            return
        self._end()
        if self._begun:
            # There is no other way to say that what went out is not all.
            self._connection.abort()
        else:
            _refuse(self._connection, *_status(error))

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._connection.begin(status_line(200), self.flow)

    def _end(self) -> None:
        self.request = None
        if self._connection.exchange is self:
            self._connection.exchange = None
        self.flow.release()


def _lost(connection: Connection) -> None:
    if connection.exchange is not None:
        connection.exchange.cancel()


def _status(error: InferError) -> tuple[int, str]:
    if error.code is Code.UNAVAILABLE and error.message == "Request timeout expired":
        return 504, "Request timed out"
    if error.code is Code.UNAVAILABLE:
        return 503, error.message
    return 500, "Internal Server Error"


def _refuse(connection: Connection, status: int, detail: str) -> None:
    _respond(connection, status, _JSON, orjson.dumps({"detail": detail}))


def _respond(connection: Connection, status: int, kind: str, body: bytes, headers: Any = None) -> None:
    """`headers` are JSON, as the model gave them."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in orjson.loads(headers)] if headers else [])
    if status in _BARE:
        connection.respond(status_line(status) + lines.encode("latin-1"))
    else:
        connection.respond(head_of(status, kind, len(body)) + lines.encode("latin-1"), (body,))
