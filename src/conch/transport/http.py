"""The v2 protocol over HTTP/1.1: routes bound to the planes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from conch.config.json import to_json
from conch.config.server import HttpOptions
from conch.protocol.v2 import answers, repository
from conch.protocol.v2.head import Target, json_too_large, parse_json_size
from conch.protocol.v2.json import JsonCodec
from conch.protocol.v2.routes import Action, Route, find
from conch.protocol.v2.status import HTTP_STATUS
from conch.service.api import ControlPlane, DataPlane
from conch.transport.bridge import Bridge
from conch.transport.exchange import Exchange, fail
from conch.transport.heads import BadRequestError, Head
from conch.transport.http1 import Connection, head_of
from conch.transport.listener import Listener
from conch.types.error import Code, InferError, invalid, not_found, unsupported
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

#: Bodies with binary tensors may be longer than JSON may; beyond this they are refused before they are read.
MAX_BODY: Final = 1 << 33

_EMPTY: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n"
_NOT_LIVE: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n"
_EMPTY_JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n"


class Question:
    """What a head asks, worked out once."""

    __slots__ = ("error", "route", "target")

    def __init__(self, route: Route) -> None:
        self.route = route
        #: For infer.
        self.target = Target(route.name, route.version)
        #: What every request with this head is told, whatever its body.
        self.error: InferError | None = None


class HttpTransport:
    """Implements `transport.api.Transport`. Make it and call it on the event loop's thread."""

    title = "HTTPService"

    def __init__(self, options: HttpOptions, data: DataPlane, control: ControlPlane, bridge: Bridge) -> None:
        self._data = data
        self._control = control
        self._bridge = bridge
        self._max = options.max_input_size
        self._codec = JsonCodec(data, options.max_input_size)
        self._listener = Listener(
            options.address,
            options.port,
            route=self._route,
            handle=self._handle,
            lost=self._lost,
            timeout=options.slow_sender_timeout,
            reuse_port=options.reuse_port,
        )
        self._answers: dict[Action, Callable[[Connection, Route, Buffer], None]] = {
            Action.LIVE: self._live,
            Action.READY: self._ready,
            Action.SERVER_METADATA: self._server_metadata,
            Action.MODEL_READY: self._model_ready,
            Action.MODEL_METADATA: self._model_metadata,
            Action.MODEL_CONFIG: self._model_config,
            Action.STATISTICS: self._statistics,
            Action.INDEX: self._index,
            Action.LOAD: self._load,
            Action.UNLOAD: self._unload,
            Action.NAMED_REPOSITORY: self._named_repository,
            Action.UNSUPPORTED: self._unsupported,
            Action.WRONG_METHOD: self._wrong_method,
            Action.NOT_FOUND: self._not_found,
        }

    @property
    def port(self) -> int:
        return self._listener.port

    async def start(self) -> None:
        await self._listener.start()

    def stop_accepting(self) -> None:
        self._listener.stop_accepting()

    def connections(self) -> int:
        return self._listener.connections()

    def inflight(self) -> int:
        return self._listener.inflight()

    async def close(self) -> None:
        await self._listener.close()

    # ---- requests

    def _route(self, head: Head) -> None:
        question = head.route = Question(find(head.method, head.path))
        if question.route.action is Action.INFER:
            self._read_infer_headers(head, question)
        json_size = question.target.json_size
        longest = self._max if json_size < 0 else MAX_BODY
        size = head.length if json_size < 0 else json_size
        if size > self._max:
            raise BadRequestError(400, json_too_large(size, self._max).message)
        if head.length > longest:
            raise BadRequestError(413, f"request body of {head.length} bytes exceeds the limit of {longest} bytes")
        head.limit = longest

    def _read_infer_headers(self, head: Head, question: Question) -> None:
        encoding = head.headers.get("content-encoding", "identity")
        if encoding.lower() not in {"identity", ""}:
            question.error = unsupported("Unsupported compression type", "send the body uncompressed")
        size = head.headers.get("inference-header-content-length")
        if size is None:
            return
        try:
            question.target.json_size = parse_json_size(size)
        except InferError as error:
            question.error = question.error or error
        if question.target.json_size < 0:
            question.error = question.error or invalid(
                f"inference header size should be in range (0, {max(head.length, 0)}), got: {size}"
            )

    def _handle(self, connection: Connection, head: Head, body: Buffer) -> None:
        question: Question = head.route
        try:
            if question.error is not None:
                fail(connection, question.error)
            elif question.route.action is Action.INFER:
                self._infer(connection, question.target, body)
            else:
                self._answers[question.route.action](connection, question.route, body)
        except InferError as error:
            fail(connection, error)
        except Exception:  # noqa: BLE001  neither this client nor the others may be left waiting
            _log.exception("a request to %s could not be handled", head.path)
            connection.fail(500, "internal error, see the server's log")

    def _infer(self, connection: Connection, target: Target, body: Buffer) -> None:
        exchange = connection.exchange
        if exchange is None:
            exchange = connection.exchange = Exchange(connection, self._bridge)
        request, exchange.pattern = self._codec.decode_infer(target, body, exchange, time.monotonic_ns())
        exchange.request = request
        try:
            self._data.infer(request)
        except BaseException:
            # It was not taken over.
            exchange.request = None
            raise

    def _lost(self, connection: Connection) -> None:
        if connection.exchange is not None:
            connection.exchange.cancel()

    # ---- what is not infer

    def _live(self, connection: Connection, route: Route, body: Buffer) -> None:
        connection.respond(_EMPTY if self._data.live() else _NOT_LIVE)

    def _ready(self, connection: Connection, route: Route, body: Buffer) -> None:
        connection.respond(_EMPTY if self._data.ready() else _NOT_LIVE)

    def _server_metadata(self, connection: Connection, route: Route, body: Buffer) -> None:
        _reply(connection, answers.server_metadata(self._data.server_metadata()))

    def _model_ready(self, connection: Connection, route: Route, body: Buffer) -> None:
        if self._data.model_ready(route.name, route.version):
            connection.respond(_EMPTY)
        else:
            connection.fail(400, "Model version not ready")

    def _model_metadata(self, connection: Connection, route: Route, body: Buffer) -> None:
        _reply(connection, answers.model_metadata(self._data.metadata(route.name, route.version)))

    def _model_config(self, connection: Connection, route: Route, body: Buffer) -> None:
        _reply(connection, to_json(self._data.config(route.name, route.version)))

    def _statistics(self, connection: Connection, route: Route, body: Buffer) -> None:
        _reply(connection, answers.statistics(self._data.statistics(route.name, route.version)))

    def _index(self, connection: Connection, route: Route, body: Buffer) -> None:
        _reply(connection, answers.index(self._control.index(repository.read_index(body))))

    def _load(self, connection: Connection, route: Route, body: Buffer) -> None:
        self._wait(connection, self._control.load(route.name, repository.read_load(body)))

    def _unload(self, connection: Connection, route: Route, body: Buffer) -> None:
        self._wait(connection, self._control.unload(route.name, repository.read_unload(body)))

    def _wait(self, connection: Connection, work: Future[None]) -> None:
        """Answer when `work` ends; until then the connection is busy, so that the answer can be no other request's."""
        post = self._bridge.post
        work.add_done_callback(lambda done: post(_finish, connection, done))

    def _named_repository(self, connection: Connection, route: Route, body: Buffer) -> None:
        raise unsupported("'repository_name' specification is not supported")

    def _unsupported(self, connection: Connection, route: Route, body: Buffer) -> None:
        raise unsupported("this endpoint is not supported yet")

    def _wrong_method(self, connection: Connection, route: Route, body: Buffer) -> None:
        connection.fail(405, "Method Not Allowed")

    def _not_found(self, connection: Connection, route: Route, body: Buffer) -> None:
        raise not_found("Not Found")


def _reply(connection: Connection, body: bytes) -> None:
    connection.respond(head_of(200, "application/json", len(body)), (body,))


def _finish(connection: Connection, done: Future[None]) -> None:
    error = InferError(Code.CANCELLED, "the request was cancelled") if done.cancelled() else done.exception()
    if error is None:
        connection.respond(_EMPTY_JSON)
    elif isinstance(error, InferError):
        fail(connection, error)
    else:
        _log.error("a load or unload failed", exc_info=error)
        connection.fail(HTTP_STATUS[Code.INTERNAL], str(error))
