"""The door of the transport room."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """One listener. All calls on the event loop's thread.

    It translates bytes through `protocol`, calls the planes and does nothing else.
    """

    @property
    def title(self) -> str:
        """For the log: `Started <title> at <address>:<port>`."""

    @property
    def port(self) -> int:
        """The port really bound (0 may have been asked for); 0 before `start`."""

    async def start(self) -> None:
        """Bind and accept. Raises OSError when the address cannot be had."""

    def stop_accepting(self) -> None:
        """Close the listening socket, or refuse new requests in the protocol's words; requests in flight go on."""

    def connections(self) -> int:
        """Open connections, for the drain log."""

    def inflight(self) -> int:
        """Requests received and not yet fully answered."""

    async def close(self) -> None:
        """Flush what can be flushed and close every connection."""
