"""The door of the transport room."""

from __future__ import annotations

from typing import Protocol


class Transport(Protocol):
    """One listener. All calls on the event loop's thread.

    It translates bytes through `protocol`, calls the planes and does nothing else.
    """

    #: For the log: `Started <title> at <address>:<port>`.
    title: str
    #: The port really bound (they ask for 0 in tests); 0 before `start`.
    port: int

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
