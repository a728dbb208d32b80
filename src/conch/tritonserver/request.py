"""Triton's requests and responses, and the iterators over them."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from conch.library import Answer
from conch.tritonserver.errors import InvalidArgumentError, TritonError, as_triton
from conch.tritonserver.tensor import Tensor
from conch.types.error import InferError

if TYPE_CHECKING:
    from conch.library.stream import AsyncStream, Stream
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
    #: A queue that every response is put into as well, as it comes: of threads, for `async_infer` of asyncio.
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

    def __init__(self, request: InferenceRequest, answers: Stream, raise_on_error: bool) -> None:
        self._request = request
        self._answers = answers
        self._raises = raise_on_error
        self._ended = False
        #: What went into the request's queue.
        self._copies: queue.SimpleQueue[InferenceResponse] | None = None
        if request.response_queue is not None:
            if isinstance(request.response_queue, asyncio.Queue):
                raise InvalidArgumentError(
                    "response_queue is an asyncio.Queue, which infer() cannot fill: expected a queue.SimpleQueue or "
                    "queue.Queue, or use async_infer()"
                )
            self._copies = queue.SimpleQueue()
            work = (request, answers, weakref.ref(self._copies))
            threading.Thread(target=_copy, args=work, name="conch-responses", daemon=True).start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferenceResponse:
        if self._ended:
            raise StopIteration
        response = _next(self._request, self._answers) if self._copies is None else self._copies.get()
        self._ended = self._ended or response.final
        return _raised(response) if self._raises else response

    def cancel(self) -> None:
        """Nobody waits for more; in the request's queue the final response says so."""
        self._ended = True
        self._answers.close()


class AsyncResponseIterator:
    """As `ResponseIterator`, for an event loop."""

    def __init__(self, request: InferenceRequest, answers: AsyncStream, raise_on_error: bool) -> None:
        self._request = request
        self._answers = answers
        self._raises = raise_on_error
        self._ended = False
        self._copies: asyncio.Queue[InferenceResponse] | None = None
        if request.response_queue is not None:
            self._copies = asyncio.Queue()
            task = asyncio.get_running_loop().create_task(_copy_async(request, answers, weakref.ref(self._copies)))
            _copying.add(task)
            task.add_done_callback(_copying.discard)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferenceResponse:
        if self._ended:
            raise StopAsyncIteration
        if self._copies is None:
            response = await _next_async(self._request, self._answers)
        else:
            response = await self._copies.get()
        self._ended = self._ended or response.final
        return _raised(response) if self._raises else response

    async def cancel(self) -> None:
        """Nobody waits for more; in the request's queue the final response says so."""
        self._ended = True
        await self._answers.aclose()


#: The loops hold their tasks weakly.
_copying: set[asyncio.Task[None]] = set()


def _copy(
    request: InferenceRequest, answers: Stream, copies: weakref.ref[queue.SimpleQueue[InferenceResponse]]
) -> None:
    """Into the request's queue as they come, whether or not anybody iterates; a queue that is full holds them back."""
    final = False
    while not final:
        response = _next(request, answers)
        final = response.final
        mine = copies()
        if mine is not None:
            mine.put(response)
        del mine
        request.response_queue.put(response)


async def _copy_async(
    request: InferenceRequest, answers: AsyncStream, copies: weakref.ref[asyncio.Queue[InferenceResponse]]
) -> None:
    final = False
    while not final:
        response = await _next_async(request, answers)
        final = response.final
        mine = copies()
        if mine is not None:
            mine.put_nowait(response)
        del mine
        put = request.response_queue.put(response)
        if inspect.isawaitable(put):
            await put


def _next(request: InferenceRequest, answers: Stream) -> InferenceResponse:
    try:
        return _read(request, next(answers, None), answers.decoupled)
    except InferError as error:
        return _failed(request, error)


async def _next_async(request: InferenceRequest, answers: AsyncStream) -> InferenceResponse:
    try:
        return _read(request, await anext(answers, None), answers.decoupled)
    except InferError as error:
        return _failed(request, error)


def _read(request: InferenceRequest, answer: Answer | None, decoupled: bool) -> InferenceResponse:
    if answer is None:
        return InferenceResponse(request.model, request.request_id, final=True)
    outputs = {name: Tensor(array) for name, array in answer.outputs.items()}
    return InferenceResponse(
        request.model, answer.id or request.request_id, dict(answer.parameters), outputs, final=not decoupled
    )


def _failed(request: InferenceRequest, error: InferError) -> InferenceResponse:
    return InferenceResponse(request.model, request.request_id, error=as_triton(error), final=True)


def _raised(response: InferenceResponse) -> InferenceResponse:
    if response.error is not None:
        raise response.error
    return response
