"""An answer to a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conch.types.error import InferError
from conch.types.request import Parameter
from conch.types.tensor import Tensor


class InferResponse:
    """`outputs` are the tensors asked for, in the order in which the model gave them; shapes are the client's."""

    __slots__ = ("outputs", "parameters")

    def __init__(self, outputs: Sequence[Tensor], parameters: dict[str, Parameter] | None = None) -> None:
        self.outputs = outputs
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"InferResponse({list(self.outputs)!r})"


class FailedResponse(InferResponse):
    """One of the answers of a decoupled model: an error, after which more may follow."""

    __slots__ = ("error",)

    def __init__(self, error: InferError) -> None:
        super().__init__(())
        self.error = error


#: Ends a request whose last response has gone already: known by its identity, it has nothing to show.
FINAL: Final = InferResponse(())
