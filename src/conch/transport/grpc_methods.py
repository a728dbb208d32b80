"""The unary methods of GRPCInferenceService and of grpc.health.v1: messages in, planes asked, messages out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from conch.pb import grpc_service_pb2 as pb
from conch.pb import health_pb2
from conch.protocol.v2.grpc_request import unparsable
from conch.protocol.v2.grpc_status import STATUS, Status
from conch.service.api import ControlPlane, DataPlane
from conch.transport.bridge import Bridge
from conch.transport.grpc_call import Call, Method
from conch.types.error import Code, InferError, invalid, unsupported
from conch.types.tensor import Buffer

_log = logging.getLogger("conch")

SERVICE: Final = "/inference.GRPCInferenceService/"
HEALTH: Final = "/grpc.health.v1.Health/"
#: Answered even while the server stops.
ALWAYS: Final = {f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", f"{HEALTH}Check"}
#: Known methods that are not served yet.
MISSING: Final = {
    f"{SERVICE}{name}"
    for name in (
        "ModelStreamInfer", "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting",
        "LogSettings",
    )
}  # fmt: skip

_monotonic_ns = time.monotonic_ns


class Methods:
    """The methods over one pair of planes."""

    def __init__(self, data: DataPlane, control: ControlPlane, bridge: Bridge) -> None:
        self._data = data
        self._control = control
        self._bridge = bridge

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
            "RepositoryIndex": _unary(pb.RepositoryIndexRequest, self._index),
            "RepositoryModelLoad": self._later(
                pb.RepositoryModelLoadRequest, self._load, pb.RepositoryModelLoadResponse
            ),
            "RepositoryModelUnload": self._later(
                pb.RepositoryModelUnloadRequest, self._unload, pb.RepositoryModelUnloadResponse
            ),
        }
        table = {SERVICE + name: method for name, method in service.items()}
        table[f"{HEALTH}Check"] = _unary(health_pb2.HealthCheckRequest, self._check)
        return table

    def infer(self, call: Call, message: Buffer) -> None:
        connection = call.connection
        if connection is None:
            return
        try:
            request = connection.state.codec.decode_infer(message, call, _monotonic_ns())
            call.begin(request)
            self._data.infer(request)
        except InferError as error:
            call.refuse(STATUS[error.code], error.message)
        except Exception as error:  # noqa: BLE001  whatever it is, the client must hear of it
            _broken(call, error)

    def _index(self, message: Any) -> Message:
        _check_repository(message)
        answer = pb.RepositoryIndexResponse()
        for entry in self._control.index(message.ready):
            answer.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return answer

    def _check(self, message: Any) -> Message:
        try:
            ready = self._data.ready()
        except InferError:
            ready = False
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if ready else states.NOT_SERVING)

    def _load(self, message: Any) -> Future[None]:
        _check_repository(message)
        parameters: dict[str, str | bytes] = {}
        for key, parameter in message.parameters.items():
            if key == "config":
                kind = "string_param"
            elif key.startswith("file:"):
                kind = "bytes_param"
            else:
                raise invalid(f"unrecognized load parameter '{key}'.", "known are 'config' and 'file:<path>'")
            if parameter.WhichOneof("parameter_choice") != kind:
                raise invalid(f"invalid value type for load parameter '{key}', expected {kind}.")
            parameters[key] = getattr(parameter, kind)
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
