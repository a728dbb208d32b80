"""Makes the decoupled models of an ensemble's request wait while too much of what they sent waits for later steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from conch.types.flow import Flow

#: So many steps of one request may be under way where the config sets no limit.
MOST = 64


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


class Pace:
    """`flow` is given to the decoupled steps of one request; `client` is the flow of the stream of its answers."""

    __slots__ = ("_client", "_full", "_most", "_post", "_slow", "_waiting", "flow")

    def __init__(self, client: Flow | None, most: int, post: Post) -> None:
        self.flow = Flow()
        self._client = client
        self._most = most
        self._post = post
        #: Whether too many steps are under way; it takes half as many to say that they are not.
        self._slow = False
        #: What was said last.
        self._full = False
        self._waiting = False

    def look(self, under_way: int) -> None:
        """So many steps are under way now. One thread at a time, any."""
        self._slow = under_way > (self._most // 2 if self._slow else self._most)
        full = self._slow or (self._client is not None and self._client.full)
        if full != self._full:
            self._full = full
            self._post(self._say)

    def _say(self) -> None:
        """On the loop: the flow as it must be now."""
        client = self._client
        if client is not None and client.full:
            self.flow.full = True
            if not self._waiting:
                self._waiting = True
                client.wait(self._client_reads)
        elif self._slow:
            self.flow.full = True
        elif self.flow.full:
            self.flow.release()

    def _client_reads(self) -> None:
        self._waiting = False
        self._full = self._slow
        self._say()
