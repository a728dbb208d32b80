"""A scheduler whose requests run when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from conch.types.request import InferRequest


@dataclass
class HoldingScheduler:
    """Holds requests until a test answers them."""

    requests: list[InferRequest] = field(default_factory=list)
    withdrawn: list[InferRequest] = field(default_factory=list)
    refuses: Exception | None = None

    def submit(self, request: InferRequest, /) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.requests.append(request)

    def go(self) -> list[InferRequest]:
        """What has been held, which is the test's from now on."""
        held, self.requests = self.requests, []
        return held

    def withdraw(self, request: InferRequest, /) -> None:
        request.cancelled = True
        self.withdrawn.append(request)

    def pending(self) -> int:
        return 0

    def inflight(self) -> int:
        return len(self.requests)

    def stop(self) -> None: ...

    def close(self) -> None: ...
