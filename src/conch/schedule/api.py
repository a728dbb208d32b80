"""The door of the scheduling room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from conch.backend.api import Instance
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from conch.types.model import ModelSpec
from conch.types.request import InferRequest


@dataclass(slots=True)
class Turn:
    """A batcher's decision.

    `run` is the batch to execute now (empty: none). `refuse` are requests that leave the queue with an error.
    `ask_at` is the time, in monotonic nanoseconds, at which to ask again even if nothing arrives (0: no need).
    """

    run: list[InferRequest]
    refuse: list[tuple[InferRequest, InferError]]
    ask_at: int = 0


class Batcher(Protocol):
    """Decides, does nothing. Nothing offered is lost: every request comes out once, in `run` or in `refuse`."""

    def offer(self, request: InferRequest, now: int) -> None:
        """Queue a request. Raises InferError when the queue is full; the request is then not taken."""

    def take(self, now: int) -> Turn:
        """The next batch, for an instance that is free now."""

    def expire(self, now: int) -> Turn:
        """Only what must leave the queue now; `ask_at` is the next deadline."""

    def sweep(self, now: int) -> Turn:
        """As `expire`, and every cancelled request leaves, wherever it stands. Looks at each waiting request."""

    @property
    def next_deadline(self) -> int:
        """No waiting request must leave before this time; 0: none has a deadline."""

    def __len__(self) -> int:
        """How many requests wait."""


class Scheduler(Protocol):
    def submit(self, request: InferRequest, /) -> None:
        """Take a request over. Any thread. Raises InferError (queue full, stopped): the request is still yours."""

    def withdraw(self, request: InferRequest, /) -> None:
        """Nobody waits for `request` any more: if it waits, it leaves the queue in this loop tick with CANCELLED.

        A request that executes goes on, and its model may see that it is cancelled; nothing happens to one that is
        settled. Only on the loop's thread.
        """

    def pending(self) -> int:
        """Requests that wait and have not begun to execute."""

    def inflight(self) -> int:
        """Requests submitted and not yet settled, those that a decoupled model still answers included."""

    def stop(self) -> None:
        """Refuse new requests from now on; those taken over are still answered."""

    def close(self) -> None:
        """End what drives the instances. After `inflight()` is 0; blocks, never on the loop thread."""


@runtime_checkable
class Elastic(Protocol):
    """A scheduler whose instances may change while it serves. Calls do not overlap, none is on the loop's thread."""

    def hire(self, instance: Instance, name: str, /) -> None:
        """Give `instance` work from now on."""

    def dismiss(self, instance: Instance, /) -> None:
        """Give `instance` nothing more; blocks until it has finished what it executes and answered all it has run."""


@runtime_checkable
class Sequential(Protocol):
    """A scheduler of requests that belong together. Any thread.

    When it is stopped, sequences that have begun may go on.
    """

    @property
    def sequential(self) -> bool:
        """False where it could have sequences, and its model has none."""

    def continues(self, request: InferRequest, /) -> bool:
        """Whether a sequence of the request's id is under way here."""

    def sequences(self) -> int:
        """How many have begun and have not ended."""


class Version(Protocol):
    """One servable version of a model, as the registry keeps it."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def stats(self) -> ModelStats: ...
    @property
    def scheduler(self) -> Scheduler: ...
    def ready(self) -> bool: ...
