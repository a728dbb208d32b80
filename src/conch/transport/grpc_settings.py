"""The calls TraceSetting and LogSettings: a request that names nothing tells, any other changes and tells."""

from __future__ import annotations

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2 import settings as codec
from conch.service.api import SettingsPlane
from conch.types.error import unsupported


class SettingsCalls:
    """Messages in, messages out. Errors are `InferError`."""

    def __init__(self, plane: SettingsPlane | None) -> None:
        self._plane = plane

    def logging(self, message: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        return codec.write_log_message(self._known().change_log(codec.read_log_message(message)))

    def trace(self, message: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        plane, model = self._known(), message.model_name
        plane.check_traced(model)
        changes = codec.read_trace_message(message)
        return codec.write_trace_message(plane.change_trace(model, changes) if changes else plane.trace(model))

    def _known(self) -> SettingsPlane:
        if self._plane is None:
            raise unsupported("this server's settings are fixed")
        return self._plane
