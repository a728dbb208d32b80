"""The endpoints of log and trace settings over HTTP: GET tells, POST changes and tells."""

from __future__ import annotations

from conch.protocol.v2 import settings as codec
from conch.protocol.v2.routes import Route
from conch.service.api import SettingsPlane
from conch.types.error import unsupported
from conch.types.tensor import Buffer


class SettingsEndpoints:
    """Bodies in, bodies out. Errors are `InferError`."""

    def __init__(self, plane: SettingsPlane | None) -> None:
        self._plane = plane

    def logging(self, route: Route, body: Buffer) -> bytes:
        return codec.write_log(self._known().log())

    def change_logging(self, route: Route, body: Buffer) -> bytes:
        return codec.write_log(self._known().change_log(codec.read_log(body)))

    def trace(self, route: Route, body: Buffer) -> bytes:
        return codec.write_trace(self._known().trace(route.name))

    def change_trace(self, route: Route, body: Buffer) -> bytes:
        plane = self._known()
        plane.check_traced(route.name)
        return codec.write_trace(plane.change_trace(route.name, codec.read_trace(body)))

    def _known(self) -> SettingsPlane:
        if self._plane is None:
            raise unsupported("this server's settings are fixed")
        return self._plane
