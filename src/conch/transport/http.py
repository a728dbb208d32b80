"""The v2 protocol over HTTP/1.1: routes bound to the planes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from conch.config.json import to_json
from conch.config.server import HttpOptions
from conch.memory.regions import Regions
from conch.protocol.v2 import answers, repository
from conch.protocol.v2.generate import GenerateCodec
from conch.protocol.v2.json import JsonCodec
from conch.protocol.v2.load_report import load_header
from conch.protocol.v2.pieces import SLOW
from conch.protocol.v2.restrict import Restrictions, route_category
from conch.protocol.v2.routes import Action, Route
from conch.protocol.v2.status import HTTP_STATUS
from conch.service.api import ControlPlane, DataPlane, SettingsPlane, TrafficPlane
from conch.transport.aside import Aside
from conch.transport.bridge import Bridge
from conch.transport.coder import Coder
from conch.transport.exchange import Exchange, fail
from conch.transport.generate import Generation
from conch.transport.heads import BadRequestError, Head
from conch.transport.http1 import Connection, head_of
from conch.transport.http_memory import MemoryRoutes
from conch.transport.http_settings import SettingsEndpoints
from conch.transport.http_traffic import TrafficEndpoints
from conch.transport.json_jobs import JsonReading
from conch.transport.listener import HttpFace, Listener
from conch.transport.question import HeadReader, Question
from conch.transport.tls import Certificates
from conch.types.error import Code, InferError, not_found, unsupported
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

_GENERATE: Final = frozenset({Action.GENERATE, Action.GENERATE_STREAM})
#: Load that models report of themselves; none does yet.
_NO_GAUGES: Final[dict[str, float]] = {}

#: Bytes that who may not ask may send before the connection is closed.
_PATIENCE: Final = 1 << 20

_EMPTY: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n"
_NOT_LIVE: Final = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nContent-Type: text/plain\r\n"
_EMPTY_JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n"


class HttpTransport(HttpFace):
    """Implements `transport.api.Transport`. Make it and call it on the event loop's thread."""

    title = "HTTPService"

    def __init__(
        self,
        options: HttpOptions,
        data: DataPlane,
        control: ControlPlane,
        bridge: Bridge,
        settings: SettingsPlane | None = None,
        regions: Regions | None = None,
        traffic: TrafficPlane | None = None,
    ) -> None:
        self._data = data
        self._control = control
        self._bridge = bridge
        self._max = options.max_input_size
        regions = regions or Regions(allowed=False)
        self._reader = HeadReader(options)
        self._aside = Aside(bridge, "http-aside")
        self._coder = Coder(self._aside)
        self._generate_codec = GenerateCodec(data, options.max_input_size)
        self._codec = JsonCodec(data, options.max_input_size, regions)
        self._listener = Listener(
            options.address,
            options.port,
            route=self._route,
            handle=self._handle,
            lost=self._lost,
            timeout=options.slow_sender_timeout,
            reuse_port=options.reuse_port,
            tls=Certificates(options.tls, "http/1.1") if options.tls is not None else None,
            soon=bridge.soon,
        )
        self._restricted = Restrictions(options.restricted)
        changeable = SettingsEndpoints(settings)
        routes = TrafficEndpoints(traffic)
        self._answers: dict[Action, Callable[[Connection, Route, Buffer], None]] = {
            Action.LIVE: self._live,
            Action.READY: self._ready,
            Action.SERVER_METADATA: self._server_metadata,
            Action.MODEL_READY: self._model_ready,
            Action.MODEL_METADATA: self._model_metadata,
            Action.MODEL_CONFIG: self._model_config,
            Action.STATISTICS: self._statistics,
            Action.TRACE: _told(changeable.trace),
            Action.CHANGE_TRACE: _told(changeable.change_trace),
            Action.LOGGING: _told(changeable.logging),
            Action.CHANGE_LOGGING: _told(changeable.change_logging),
            Action.TRAFFIC: _told(routes.one),
            Action.ALL_TRAFFIC: _told(routes.all),
            Action.CHANGE_TRAFFIC: _told(routes.change),
            Action.DELETE_TRAFFIC: _told(routes.delete),
            Action.INDEX: self._index,
            Action.LOAD: self._load,
            Action.LOAD_GROUP: self._load_group,
            Action.UNLOAD: self._unload,
            Action.NAMED_REPOSITORY: self._named_repository,
            Action.WRONG_METHOD: self._wrong_method,
            Action.NOT_FOUND: self._not_found,
            **MemoryRoutes(regions).answers(),
        }

    async def close(self) -> None:
        await super().close()
        self._aside.close()

    # ---- requests

    def _route(self, head: Head) -> None:
        question = head.route = Question(head)
        if not self._refuses(head, question):
            self._reader.read(head, question)

    def _refuses(self, head: Head, question: Question) -> bool:
        """Whether the API is restricted and the head lacks the key; nobody without it makes us read a large body."""
        error = self._restricted.check(route_category(question.route), lambda name: _header(head, name))
        if error is None:
            return False
        if not 0 <= head.length <= _PATIENCE:
            raise BadRequestError(403, error.message)
        question.error = error
        return True

    def _handle(
        self, connection: Connection, head: Head, body: Buffer, plain: bool = False, read: JsonReading | None = None
    ) -> None:
        """`plain`: the body's coding has been undone. `read`: its JSON has been read."""
        question: Question = head.route
        try:
            if question.error is not None:
                fail(connection, question.error)
            elif question.coding and not plain:
                self._inflate(connection, head, body)
            elif question.route.action is Action.INFER:
                if len(body) >= SLOW and read is None:
                    self._infer_large(connection, head, body)
                else:
                    self._infer(connection, question, body, read)
            elif question.route.action in _GENERATE:
                self._generate(connection, question, body)
            else:
                self._answers[question.route.action](connection, question.route, body)
        except InferError as error:
            fail(connection, error)
        except Exception:  # noqa: BLE001  neither this client nor the others may be left waiting
            _log.exception("a request to %s could not be handled", head.path)
            connection.fail(500, "internal error, see the server's log")

    def _inflate(self, connection: Connection, head: Head, body: Buffer) -> None:
        def go_on(plain: Buffer, error: InferError | None) -> None:
            if error is not None:
                fail(connection, error)
            elif not connection.closed:
                self._handle(connection, head, plain, plain=True)

        self._coder.inflate(connection, head.route.coding, body, self._max, go_on)

    def _infer_large(self, connection: Connection, head: Head, body: Buffer) -> None:
        text = self._codec.heavy_text(head.route.target, body)
        if text is None:
            self._infer(connection, head.route, body, None)
            return

        def go_on(job: JsonReading) -> None:
            if not connection.closed:
                self._handle(connection, head, body, plain=True, read=job)

        self._aside.run(connection, JsonReading(connection, text), go_on)

    def _infer(self, connection: Connection, question: Question, body: Buffer, read: JsonReading | None) -> None:
        exchange = connection.exchange
        if exchange is None:
            exchange = connection.exchange = Exchange(connection, self._bridge, self._coder, self._aside)
        target, decode = question.target, self._codec.decode_infer
        if read is None:
            request, exchange.pattern = decode(target, body, exchange, time.monotonic_ns())
        else:
            request, exchange.pattern = decode(target, body, exchange, read.received_ns, read.asked)
        exchange.request = request
        extras = exchange.extras = question.extras
        if extras is not None:
            exchange.expect(request, extras)
        try:
            self._data.infer(request)
        except BaseException:
            exchange.refused()
            raise

    def _generate(self, connection: Connection, question: Question, body: Buffer) -> None:
        route = question.route
        more = load_header(question.headers, _NO_GAUGES)
        streams = route.action is Action.GENERATE_STREAM
        generation = Generation(connection, self._bridge, streams=streams, more=more)
        request = self._generate_codec.decode(route.name, route.version, body, generation, time.monotonic_ns())
        generation.begin(request, question.extras)
        connection.exchange = generation
        try:
            self._data.infer(request)
        except BaseException:
            generation.refused()
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

    def _load_group(self, connection: Connection, route: Route, body: Buffer) -> None:
        self._wait(connection, self._control.load_group(repository.read_group(body)))

    def _unload(self, connection: Connection, route: Route, body: Buffer) -> None:
        self._wait(connection, self._control.unload(route.name, repository.read_unload(body)))

    def _wait(self, connection: Connection, work: Future[None]) -> None:
        """Answer when `work` ends; until then the connection is busy, so that the answer can be no other request's."""
        post = self._bridge.post
        work.add_done_callback(lambda done: post(_finish, connection, done))

    def _named_repository(self, connection: Connection, route: Route, body: Buffer) -> None:
        raise unsupported("'repository_name' specification is not supported")

    def _wrong_method(self, connection: Connection, route: Route, body: Buffer) -> None:
        connection.fail(405, "Method Not Allowed")

    def _not_found(self, connection: Connection, route: Route, body: Buffer) -> None:
        raise not_found("Not Found")


def _reply(connection: Connection, body: bytes) -> None:
    connection.respond(head_of(200, "application/json", len(body)), (body,))


def _told(answer: Callable[[Route, Buffer], bytes]) -> Callable[[Connection, Route, Buffer], None]:
    """What answers with the JSON that `answer` gives."""
    return lambda connection, route, body: _reply(connection, answer(route, body))


def _header(head: Head, name: str) -> str | None:
    """A header's value as text of the command line; None when it is absent."""
    value = head.headers.get(name)
    return None if value is None else value.encode("latin-1").decode("utf-8", "surrogateescape")


def _finish(connection: Connection, done: Future[None]) -> None:
    error = InferError(Code.CANCELLED, "the request was cancelled") if done.cancelled() else done.exception()
    if error is None:
        connection.respond(_EMPTY_JSON)
    elif isinstance(error, InferError):
        fail(connection, error)
    else:
        _log.error("a load or unload failed", exc_info=error)
        connection.fail(HTTP_STATUS[Code.INTERNAL], str(error))
