"""Triton's requests and responses, and the iterators over them."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from conch.library import Answer
from conch.tritonserver.errors import TritonError, as_triton
from conch.tritonserver.tensor import Tensor
from conch.types.error import InferError

if TYPE_CHECKING:
    from conch.tritonserver.model import Model

#: Bits of `flags`.
SEQUENCE_START, SEQUENCE_END = 1, 2


@dataclass
class InferenceRequest:
    """`inputs` are tensors, arrays, lists, or whatever has DLPack. `timeout` is microseconds in the queue."""

    model: Model
    request_id: str | None = None
    flags: int = 0
    correlation_id: int | str | None = None
    priority: int = 0
    timeout: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, str | int | bool] = field(default_factory=dict)
    #: Answers are in the host's memory, whatever is asked for.
    output_memory_type: Any = None
    #: A queue that every response is put into as well.
    response_queue: Any = None

    def arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and parameters as the library takes them."""
        steering: dict[str, Any] = {}
        if self.correlation_id:
            steering["sequence_id"] = self.correlation_id
            steering["sequence_start"] = bool(self.flags & SEQUENCE_START)
            steering["sequence_end"] = bool(self.flags & SEQUENCE_END)
        if self.priority:
            steering["priority"] = self.priority
        if self.timeout:
            steering["timeout"] = self.timeout
        inputs = {name: value.to_numpy() if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return inputs, {**self.parameters, **steering}


@dataclass
class InferenceResponse:
    model: Model
    request_id: str | None = None
    parameters: dict[str, str | int | bool | float] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    error: TritonError | None = None
    classification_label: str | None = None
    final: bool = False


class ResponseIterator:
    """The responses to a request; the last one is `final`, of decoupled models one without outputs."""

    def __init__(
        self, request: InferenceRequest, answers: Iterator[Answer], *, decoupled: bool, raise_on_error: bool
    ) -> None:
        self._request = request
        self._answers = answers
        self._decoupled = decoupled
        self._raises = raise_on_error
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferenceResponse:
        if self._ended:
            raise StopIteration
        try:
            response = read(self._request, next(self._answers, None), self._decoupled)
        except InferError as error:
            response = failed(self._request, error)
        self._ended = response.final
        return deliver(self._request, response, self._raises)

    def cancel(self) -> None:
        """Nobody waits for more."""
        self._ended = True
        close = getattr(self._answers, "close", None)
        if close is not None:
            close()


class AsyncResponseIterator:
    """As `ResponseIterator`, for an event loop."""

    def __init__(
        self, request: InferenceRequest, answers: AsyncIterator[Answer], *, decoupled: bool, raise_on_error: bool
    ) -> None:
        self._request = request
        self._answers = answers
        self._decoupled = decoupled
        self._raises = raise_on_error
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferenceResponse:
        if self._ended:
            raise StopAsyncIteration
        try:
            response = read(self._request, await anext(self._answers, None), self._decoupled)
        except InferError as error:
            response = failed(self._request, error)
        self._ended = response.final
        return deliver(self._request, response, self._raises)

    async def cancel(self) -> None:
        """Nobody waits for more."""
        self._ended = True
        close = getattr(self._answers, "aclose", None)
        if close is not None:
            await close()


def read(request: InferenceRequest, answer: Answer | None, decoupled: bool) -> InferenceResponse:
    if answer is None:
        return InferenceResponse(request.model, request.request_id, final=True)
    outputs = {name: Tensor(array) for name, array in answer.outputs.items()}
    return InferenceResponse(
        request.model, answer.id or request.request_id, dict(answer.parameters), outputs, final=not decoupled
    )


def failed(request: InferenceRequest, error: InferError) -> InferenceResponse:
    return InferenceResponse(request.model, request.request_id, error=as_triton(error), final=True)


def deliver(request: InferenceRequest, response: InferenceResponse, raises: bool) -> InferenceResponse:
    if request.response_queue is not None:
        put = request.response_queue
        if isinstance(put, queue.Queue):
            put.put(response)
        else:
            put.put_nowait(response)
    if response.error is not None and raises:
        raise response.error
    return response
