"""The server's listeners: which there are, how they are opened over the planes, and how they end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from conch.config.server import GrpcOptions, HttpOptions, MetricsOptions
from conch.frontend.metrics import MetricsTransport
from conch.memory.regions import Regions
from conch.service.api import ControlPlane, DataPlane, SettingsPlane, TrafficPlane
from conch.transport.api import Transport
from conch.transport.bridge import Bridge
from conch.transport.grpc import GrpcTransport
from conch.transport.http import HttpTransport

_log = logging.getLogger("conch")


class Listeners:
    """All calls on the event loop's thread."""

    def __init__(
        self,
        data: DataPlane,
        control: ControlPlane,
        bridge: Bridge,
        settings: SettingsPlane,
        regions: Regions,
        traffic: TrafficPlane,
        page: Callable[[], bytes],
    ) -> None:
        self._data = data
        self._control = control
        self._bridge = bridge
        self._settings = settings
        self._regions = regions
        self._traffic = traffic
        self._page = page
        self._open: list[Transport] = []

    async def http(self, options: HttpOptions) -> Transport:
        """Raises OSError when the address cannot be had; so do the others."""
        made = HttpTransport(
            options, self._data, self._control, self._bridge, self._settings, self._regions, self._traffic
        )
        return await self.add(made, options.address)

    async def grpc(self, options: GrpcOptions) -> Transport:
        made = GrpcTransport(options, self._data, self._control, self._bridge, self._settings, self._regions)
        return await self.add(made, options.address)

    async def metrics(self, options: MetricsOptions) -> Transport:
        return await self.add(MetricsTransport(options, self._page), options.address)

    async def add(self, transport: Transport, address: str) -> Transport:
        """Start a listener that somebody else has made; it ends with the others."""
        self._open.append(transport)
        try:
            await transport.start()
        except BaseException:
            await self.remove(transport)
            raise
        _log.info("Started %s at %s:%d", transport.title, address, transport.port)
        return transport

    async def remove(self, transport: Transport) -> None:
        """End one of them, whatever it is still busy with."""
        if transport in self._open:
            self._open.remove(transport)
            transport.stop_accepting()
            await transport.close()

    @property
    def http_port(self) -> int:
        """0 where there is no HTTP."""
        return next((each.port for each in self._open if isinstance(each, HttpTransport)), 0)

    @property
    def grpc_port(self) -> int:
        return next((each.port for each in self._open if isinstance(each, GrpcTransport)), 0)

    @property
    def metrics_port(self) -> int:
        return next((each.port for each in self._open if isinstance(each, MetricsTransport)), 0)

    async def drain(self, deadline: float) -> None:
        """Accept nothing more, and wait until what is in flight is answered, at most until `deadline`."""
        for transport in self._open:
            if not isinstance(transport, MetricsTransport):
                transport.stop_accepting()
        speak_at = 0.0
        while any(each.inflight() for each in self._open) and (now := time.monotonic()) < deadline:
            if now >= speak_at:
                found = sum([each.connections() for each in self._open if isinstance(each, HttpTransport)])
                _log.info("Timeout %d: Found %d HTTP service connections", round(deadline - now), found)
                speak_at = now + 1.0
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        # Somebody may remove one meanwhile.
        for transport in list(self._open):
            await transport.close()
