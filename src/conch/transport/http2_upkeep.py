"""When a connection is pinged, when its own pings are too many, and when it is old (gRPC's keepalive). Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

#: The least time between pings of a peer that has no calls and was not allowed to ping without.
_IDLE_INTERVAL: Final = 7200.0
#: For so long after data has gone, pings may be about it: clients that measure their bandwidth ping once for each piece
#: that they read, and a burst of answers is read in many. gRPC's own server forgives the first of them only.
_ABOUT_DATA: Final = 2.0


@dataclass(frozen=True, slots=True)
class UpkeepRules:
    """Times are seconds."""

    #: A peer that has been silent for so long is pinged, and given up when it then stays silent for `ping_timeout`.
    ping_after: float = 7200.0
    ping_timeout: float = 20.0
    #: Also while it has no calls.
    ping_without_calls: bool = False
    #: So many pings, without data from us in between; 0: any number.
    max_pings_without_data: int = 2
    #: The peer's own pings must be so far apart, unless we have sent data in between; each that is not is a strike.
    min_ping_interval: float = 300.0
    #: With more strikes than these the peer is sent away; 0: never.
    max_ping_strikes: int = 2
    #: After `max_age` the peer is asked to leave, `max_age_grace` later it is sent away.
    max_age: float = math.inf
    max_age_grace: float = math.inf

    def tick(self) -> float:
        """How often a connection must be looked at for the times to be kept well enough."""
        shortest = min(self.ping_after, self.ping_timeout, self.max_age, self.max_age_grace)
        return min(5.0, max(0.02, shortest / 8))


class Step(Enum):
    """What is to be done now."""

    NOTHING = 0
    PING = 1
    #: The peer has not answered a ping.
    GIVE_UP = 2
    #: The connection is old: no new streams.
    GOODBYE = 3
    #: The connection is old, and empty or out of grace.
    CLOSE = 4


class Upkeep:
    """Of one connection. `progress` is a number that grows when we send data or the peer opens a stream."""

    __slots__ = (
        "_heard_at", "_leaving_at", "_left_at", "_moved_at", "_pinged_at", "_pings", "_progress", "_received_at",
        "_received_progress", "_rules", "_strikes",
    )  # fmt: skip

    def __init__(self, rules: UpkeepRules, now: float, jitter: float = 1.0) -> None:
        """`jitter` spreads the ends of connections that began together."""
        self._rules = rules
        self._heard_at = now
        self._leaving_at = now + rules.max_age * jitter
        #: When it was asked to leave; 0 before.
        self._left_at = 0.0
        #: When the ping that awaits its answer was sent; 0 when none does.
        self._pinged_at = 0.0
        self._pings = 0
        self._progress = 0
        self._received_at = -math.inf
        self._received_progress = 0
        #: When the first ping after the last progress came.
        self._moved_at = -math.inf
        self._strikes = 0

    def received_ping(self, now: float, progress: int, calls: int) -> bool:
        """False when that was one ping too many."""
        rules = self._rules
        if progress != self._received_progress:
            self._received_progress = progress
            self._received_at, self._strikes = -math.inf, 0
            self._moved_at = now
        if now - self._moved_at < _ABOUT_DATA:
            return True
        idle = not calls and not rules.ping_without_calls
        allowed = self._received_at + (_IDLE_INTERVAL if idle else rules.min_ping_interval)
        self._received_at = now
        if now >= allowed:
            return True
        self._strikes += 1
        return rules.max_ping_strikes == 0 or self._strikes <= rules.max_ping_strikes

    def check(self, now: float, heard: bool, progress: int, calls: int) -> Step:
        """`heard`: something has come from the peer since the last check."""
        rules = self._rules
        if heard:
            self._heard_at = now
            self._pinged_at = 0.0
        if self._left_at:
            return Step.CLOSE if not calls or now - self._left_at >= rules.max_age_grace else Step.NOTHING
        if now >= self._leaving_at:
            self._left_at = now
            return Step.GOODBYE
        if self._pinged_at:
            return Step.GIVE_UP if now - self._pinged_at >= rules.ping_timeout else Step.NOTHING
        if now - self._heard_at < rules.ping_after or not (calls or rules.ping_without_calls):
            return Step.NOTHING
        if progress != self._progress:
            self._progress, self._pings = progress, 0
        if rules.max_pings_without_data and self._pings >= rules.max_pings_without_data:
            return Step.NOTHING
        self._pings += 1
        self._pinged_at = now
        return Step.PING
