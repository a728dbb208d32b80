"""The methods of GRPCInferenceService, grpc.health.v1 and reflection: messages in, planes asked, messages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from conch.memory.regions import Regions
from conch.pb import grpc_service_pb2 as pb
from conch.pb import health_pb2
from conch.protocol.v2.grpc_request import unparsable
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.protocol.v2.repository import SWITCHES
from conch.service.api import ControlPlane, DataPlane, SettingsPlane
from conch.transport.bridge import Bridge
from conch.transport.grpc_call import Call, Method
from conch.transport.grpc_memory import memory_handlers
from conch.transport.grpc_model_stream import ModelStream
from conch.transport.grpc_settings import SettingsCalls
from conch.transport.grpc_stream import Conversation, Stream
from conch.transport.grpc_talks import HealthWatch, Reflection
from conch.types.error import Code, InferError, invalid, unsupported
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

SERVICE: Final = "/inference.GRPCInferenceService/"
HEALTH: Final = "/grpc.health.v1.Health/"
#: Answered even while the server stops.
ALWAYS: Final = {f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", f"{HEALTH}Check"}
#: Whose answers `--grpc-infer-response-compression-level` and whose requests `--grpc-header-forward-pattern` are about.
INFERENCE: Final = {f"{SERVICE}ModelInfer", f"{SERVICE}ModelStreamInfer"}

_monotonic_ns = time.monotonic_ns


class Methods:
    """The methods over one pair of planes."""

    def __init__(
        self,
        data: DataPlane,
        control: ControlPlane,
        bridge: Bridge,
        settings: SettingsPlane | None = None,
        regions: Regions | None = None,
    ) -> None:
        self._data = data
        self._control = control
        self._bridge = bridge
        self._settings = SettingsCalls(settings)
        self._memory = memory_handlers(regions or Regions(allowed=False))

    def table(self) -> dict[str, Method]:
        """Path to method."""
        data = self._data
        service: dict[str, Method] = {
            "ModelInfer": self.infer,
            "ServerLive": _unary(pb.ServerLiveRequest, lambda _: pb.ServerLiveResponse(live=data.live())),
            "ServerReady": _unary(pb.ServerReadyRequest, lambda _: pb.ServerReadyResponse(ready=data.ready())),
            "ModelReady": _unary(
                pb.ModelReadyRequest, lambda m: pb.ModelReadyResponse(ready=data.model_ready(m.name, m.version))
            ),
            "ServerMetadata": _unary(pb.ServerMetadataRequest, lambda _: data.server_metadata()),
            "ModelMetadata": _unary(pb.ModelMetadataRequest, lambda m: data.metadata(m.name, m.version)),
            "ModelConfig": _unary(
                pb.ModelConfigRequest, lambda m: pb.ModelConfigResponse(config=data.config(m.name, m.version))
            ),
            "ModelStatistics": _unary(pb.ModelStatisticsRequest, lambda m: data.statistics(m.name, m.version)),
            "TraceSetting": _unary(pb.TraceSettingRequest, self._settings.trace),
            "LogSettings": _unary(pb.LogSettingsRequest, self._settings.logging),
            "RepositoryIndex": _unary(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": self._later(
                pb.RepositoryModelLoadRequest, self._load, pb.RepositoryModelLoadResponse
            ),
            "RepositoryModelUnload": self._later(
                pb.RepositoryModelUnloadRequest, self._unload, pb.RepositoryModelUnloadResponse
            ),
        }
        service |= {name: _unary(kind, handle) for name, (kind, handle) in self._memory.items()}
        table = {SERVICE + name: method for name, method in service.items()}
        table[f"{HEALTH}Check"] = _unary(health_pb2.HealthCheckRequest, self._check)
        return table

    def streams(self) -> dict[str, Callable[[Stream], Conversation]]:
        """Path to what begins the conversation of a streaming method."""
        data, bridge, serving = self._data, self._bridge, self._serving
        return {
            f"{SERVICE}ModelStreamInfer": lambda stream: ModelStream(stream, data, bridge),
            f"{HEALTH}Watch": lambda stream: HealthWatch(stream, serving),
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Reflection,
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Reflection,
        }

    def infer(self, call: Call, message: Buffer) -> None:
        connection = call.connection
        if connection is None:
            return
        forwarded = call.forwarded
        codec = connection.state.codec if forwarded is None else connection.state.special_codec(False, forwarded)
        try:
            request = codec.decode_infer(message, call, _monotonic_ns())
            call.begin(request)
            self._data.infer(request)
        except InferError as error:
            call.refuse(STATUS[error.code], error.message, error.retry_after_s)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            _broken(call, error)

    def _index(self, message: Any) -> Message:
        _check_repository(message)
        answer = pb.RepositoryIndexResponse()
        for entry in self._control.index(message.ready):
            answer.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return answer

    def _check(self, message: Any) -> Message:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._serving() else states.NOT_SERVING)

    def _serving(self) -> bool:
        try:
            return self._data.ready()
        except InferError:
            return False

    def _load(self, message: Any) -> Future[None]:
        _check_repository(message)
        parameters: dict[str, str | bytes] = {}
        for key, parameter in message.parameters.items():
            if key == "config":
                kind = "string_param"
            elif key.startswith("file:"):
                kind = "bytes_param"
            elif key in SWITCHES:
                kind = "bool_param"
            else:
                raise invalid(
                    f"unrecognized load parameter '{key}'.", f"known are 'config', 'file:<path>', {', '.join(SWITCHES)}"
                )
            if parameter.WhichOneof("parameter_choice") != kind:
                raise invalid(f"invalid value type for load parameter '{key}', expected {kind}.")
            value = getattr(parameter, kind)
            parameters[key] = value if kind != "bool_param" else "true" if value else "false"
        return self._control.load(message.model_name, parameters)

    def _unload(self, message: Any) -> Future[None]:
        _check_repository(message)
        dependents = False
        if "unload_dependents" in message.parameters:
            parameter = message.parameters["unload_dependents"]
            if parameter.WhichOneof("parameter_choice") != "bool_param":
                raise invalid("invalid value type for 'unload_dependents' parameter, expected bool_param.")
            dependents = parameter.bool_param
        return self._control.unload(message.model_name, dependents)

    def _later(self, request: type[Message], start: Callable[[Any], Future[None]], response: type[Message]) -> Method:
        """A method whose answer is an empty message, once the work is done."""
        bridge = self._bridge

        def method(call: Call, message: Buffer) -> None:
            try:
                future = start(_parse(request, message))
            except InferError as error:
                call.refuse(STATUS[error.code], error.message)
            except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
                _broken(call, error)
            else:
                future.add_done_callback(lambda done: bridge.post(_settle, call, done, response))

        return method


def _settle(call: Call, done: Future[None], response: type[Message]) -> None:
    if done.cancelled():
        call.refuse(Status.CANCELLED, "the work was cancelled")
        return
    error = done.exception()
    if error is None:
        _answer(call, response())
    elif isinstance(error, InferError):
        call.refuse(STATUS[error.code], error.message)
    else:
        _broken(call, error)


def _unary(request: type[Message], handle: Callable[[Any], Message]) -> Method:
    def method(call: Call, message: Buffer) -> None:
        try:
            answer = handle(_parse(request, message))
        except InferError as error:
            call.refuse(STATUS[error.code], error.message)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            _broken(call, error)
        else:
            _answer(call, answer)

    return method


def _answer(call: Call, message: Message) -> None:
    raw = message.SerializeToString()
    call.answer([raw], len(raw))


def _parse(kind: type[Message], message: Buffer) -> Message:
    try:
        return kind.FromString(bytes(message))
    except DecodeError as error:
        raise unparsable() from error


def _broken(call: Call, error: BaseException) -> None:
    _log.error("a gRPC call failed inside the server", exc_info=error)
    call.refuse(STATUS[Code.INTERNAL], f"the server failed to handle the request: {type(error).__name__}")


def _check_repository(message: Any) -> None:
    if message.repository_name:
        raise unsupported("'repository_name' specification is not supported")
