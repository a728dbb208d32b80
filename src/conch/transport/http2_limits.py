"""What one HTTP/2 peer may cost us before we hang up: sizes, counts and a budget for work that leads nowhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from conch.transport.http2_upkeep import UpkeepRules

#: So many bytes that we send earn the peer one frame. Small messages of a stream are read, and acknowledged by
#: windows and pings, one by one.
_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes, times seconds."""

    max_concurrent_streams: int = 4096
    #: Of one frame that we receive, as we advertise it.
    max_frame_size: int = 1 << 20
    #: Of one header block as it travels; and how many CONTINUATION frames it may have.
    max_header_block: int = 32_768
    max_continuations: int = 16
    #: Of a header list as RFC 9113 6.5.2 counts it, as we advertise it.
    max_header_list: int = 16_384
    #: Receive windows.
    stream_window: int = 16 << 20
    connection_window: int = 64 << 20
    #: Answers that wait for the peer's window; above it, new streams are refused.
    max_pending: int = 256 << 20
    #: A frame, a header block, a request or an answer that makes no progress for so long is given up.
    timeout: float = 60.0
    upkeep: UpkeepRules = field(default_factory=UpkeepRules)


class Budget:
    """Counts frames that cost us work and bring nobody nearer to an answer: resets, pings, settings, empty data.

    Each costs 1. An answer earns, and so do time and the data that we send; thus a peer that does real work may reset
    and ping in proportion and hand its window back in small pieces, and one that does nothing else runs dry
    (CVE-2023-44487 "rapid reset", CVE-2019-9511 to 9518).
    """

    __slots__ = ("_asked", "_rate", "_sent", "_start", "credit")

    def __init__(self, now: float, start: int = 2000, rate: float = 100.0) -> None:
        self.credit = start
        self._start = start
        #: Credit per second, granted when the rest is spent.
        self._rate = rate
        self._asked = now
        self._sent = 0

    def refill(self, now: float, sent: int = 0) -> bool:
        """Called when the credit is spent: grants what time has earned, and what `sent`, all bytes of data that have
        gone so far, has. False when that is nothing."""
        earned = int((now - self._asked) * self._rate) + (sent - self._sent) // _BYTES
        self.credit += min(self._start, earned)
        self._asked = now
        self._sent = sent
        return self.credit > 0
