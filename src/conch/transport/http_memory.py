"""The shared memory routes of HTTP: regions registered, asked about and unregistered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from conch.memory.regions import Regions
from conch.protocol.v2 import shared_memory
from conch.protocol.v2.routes import Action, Route
from conch.transport.http1 import Connection, head_of
from conch.types.error import invalid
from conch.types.tensor import Buffer

_EMPTY: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n"


class MemoryRoutes:
    """What answers them. A system call or two each, so they are answered at once."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def answers(self) -> dict[Action, Callable[[Connection, Route, Buffer], None]]:
        return {
            Action.SHARED_MEMORY_STATUS: self._status,
            Action.SHARED_MEMORY_REGISTER: self._register,
            Action.SHARED_MEMORY_UNREGISTER: self._unregister,
        }

    def _status(self, connection: Connection, route: Route, body: Buffer) -> None:
        regions = self._regions
        if route.kind == "system":
            answer = shared_memory.write_system(regions.system(route.name))
        else:
            answer = shared_memory.write_cuda(regions.cuda(route.name))
        connection.respond(head_of(200, "application/json", len(answer)), (answer,))

    def _register(self, connection: Connection, route: Route, body: Buffer) -> None:
        regions, name = self._regions, route.name
        regions.check_allowed()
        if not name:
            raise invalid(f"'region name' is necessary to register {route.kind} shared memory region")
        if route.kind == "system":
            system = shared_memory.read_system(body)
            regions.register_system(name, system.key, system.offset, system.byte_size)
        else:
            cuda = shared_memory.read_cuda(body)
            regions.register_cuda(name, cuda.handle, cuda.device_id, cuda.byte_size)
        connection.respond(_EMPTY)

    def _unregister(self, connection: Connection, route: Route, body: Buffer) -> None:
        if route.kind == "system":
            self._regions.unregister_system(route.name)
        else:
            self._regions.unregister_cuda(route.name)
        connection.respond(_EMPTY)
