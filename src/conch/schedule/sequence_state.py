"""Implicit state: what a model says at the end of one request of a sequence, it hears with the next. Pure."""

from __future__ import annotations

from collections.abc import Sequence as Row
from dataclasses import dataclass

from conch.config.sequence_tensors import State
from conch.schedule.sequence_life import START, Sequence
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor

#: One state: its full shape and its bytes.
Value = tuple[tuple[int, ...], Buffer]


@dataclass(frozen=True, slots=True)
class States:
    """The states of one model. A sequence's `state` has one `Value` for each, or is None while it has none yet."""

    states: tuple[State, ...]
    #: What a sequence begins with.
    initial: tuple[Value, ...]
    #: Whether shapes may change from one request to the next.
    open: bool
    names: frozenset[str]

    @classmethod
    def of(cls, states: Row[State], *, batching: bool) -> States:
        lead = (1,) if batching else ()
        initial = tuple([((*lead, *state.shape), state.data) for state in states])
        names = frozenset([state.output for state in states])
        return cls(tuple(states), initial, any(-1 in state.dims for state in states), names)

    def now(self, sequence: Sequence, flags: int) -> tuple[Value, ...]:
        """What the model is told with the next request of `sequence`, which has these `flags`."""
        state: tuple[Value, ...] | None = sequence.state
        return self.initial if state is None or flags & START else state

    def shapes(self, values: Row[Value]) -> tuple[tuple[int, ...], ...]:
        return tuple([shape for shape, _ in values]) if self.open else ()

    def keep(self, sequence: Sequence, before: Row[Value], outputs: Row[Tensor]) -> None:
        """Remember what the model said. A state that it left out stays as it was `before`."""
        said = {tensor.name: tensor for tensor in outputs if tensor.name in self.names}
        # Copied: an answer may be a piece of a batch, or lie in memory that is used again.
        sequence.state = tuple(
            [
                (said[state.output].shape, bytes(said[state.output].data)) if state.output in said else value
                for state, value in zip(self.states, before, strict=True)
            ]
        )

    def without(self, response: InferResponse, wanted: Row[str]) -> InferResponse:
        """The answer as the client sees it: states only where they are among the outputs `wanted`."""
        kept = [tensor for tensor in response.outputs if tensor.name not in self.names or tensor.name in wanted]
        if len(kept) < len(response.outputs):
            response.outputs = kept
        return response
