"""The endpoints of traffic routes over HTTP: GET tells, PUT sets, DELETE takes back what was set."""

from __future__ import annotations

from typing import Final

import msgspec

from conch.protocol.v2.routes import Route
from conch.service.api import TrafficPlane
from conch.types.error import unsupported
from conch.types.tensor import Buffer

_encode: Final = msgspec.json.Encoder().encode


class TrafficEndpoints:
    """Bodies in, bodies out. Errors are `InferError`."""

    def __init__(self, plane: TrafficPlane | None) -> None:
        self._plane = plane

    def all(self, route: Route, body: Buffer) -> bytes:
        return _encode({"routes": self._known().routes()})

    def one(self, route: Route, body: Buffer) -> bytes:
        return _encode(self._known().route(route.name))

    def change(self, route: Route, body: Buffer) -> bytes:
        return _encode(self._known().put(route.name, bytes(body)))

    def delete(self, route: Route, body: Buffer) -> bytes:
        self._known().delete(route.name)
        return b"{}"

    def _known(self) -> TrafficPlane:
        if self._plane is None:
            raise unsupported("this server routes no traffic")
        return self._plane
