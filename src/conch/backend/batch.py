"""One run of a batch for backends that compute it as a whole: gather the inputs, share out the outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from conch.backend.ragged import Ragged
from conch.observe.stats import ModelStats, Reason
from conch.types.device import on_device, to_host
from conch.types.dtype import BYTES
from conch.types.error import Code, InferError, internal, invalid
from conch.types.model import ModelSpec, TensorSpec, carry_shape
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Buffer, Tensor, string_offsets

Shape = tuple[int, ...]


class Batch:
    """The requests that one run of the model answers; they agree in the inputs present and in all but the batch size.

    Requests nobody waits for any more are answered with CANCELLED at once and left out. Call `gather` for the inputs,
    `input_end`, run the model, `output_start`, then `settle`, `fail` or `refuse`, exactly once.
    """

    __slots__ = ("_input_end_ns", "_output_start_ns", "_ragged", "_start_ns", "_stats", "requests", "rows", "spec")

    def __init__(
        self, spec: ModelSpec, requests: Sequence[InferRequest], stats: ModelStats, ragged: Ragged | None = None
    ) -> None:
        self._start_ns = self._input_end_ns = self._output_start_ns = time.monotonic_ns()
        self.spec = spec
        self._stats = stats
        self._ragged = ragged
        self.requests = drop_cancelled(requests, stats)
        self.rows = sum([request.form.rows for request in self.requests])

    def present(self) -> tuple[int, ...]:
        """Positions in `spec.inputs` of the inputs that the requests carry."""
        return self.requests[0].form.inputs

    def wanted(self) -> Sequence[TensorSpec]:
        """The outputs that some request asked for, in the config's order."""
        names: set[str] = set()
        for request in self.requests:
            outputs = request.form.outputs
            if outputs is None:
                return self.spec.outputs
            names.update(outputs)
        return [output for output in self.spec.outputs if output.name in names]

    def gather(self, position: int) -> tuple[Shape, Buffer]:
        """The full batch shape that the backend sees, and the wire bytes, of the input at `position` in the config."""
        first = self.requests[0].form
        index = first.inputs.index(position)
        if self.spec.inputs[position].ragged:
            # One row of all elements, whatever the requests' shapes.
            count = sum([request.form.counts[index] for request in self.requests])
            return (count,), b"".join([request.data[index] for request in self.requests])
        if len(self.requests) == 1:
            return first.backend_shapes[index], self.requests[0].data[index]
        shape = (self.rows, *first.backend_shapes[index][1:])
        return shape, b"".join([request.data[index] for request in self.requests])

    def parts(self, position: int) -> tuple[Shape, list[Buffer]]:
        """As `gather`, but the requests' own bytes one by one, which may be on a device."""
        first = self.requests[0].form
        index = first.inputs.index(position)
        shape = first.backend_shapes[index]
        if self.spec.inputs[position].ragged:
            shape = (sum([request.form.counts[index] for request in self.requests]),)
        elif len(self.requests) > 1:
            shape = (self.rows, *shape[1:])
        return shape, [request.data[index] for request in self.requests]

    def staying(self) -> frozenset[str]:
        """Names of the outputs that nobody needs on the host."""
        stays = self.requests[0].form.stays
        if stays and len(self.requests) > 1:
            stays = stays.intersection(*[request.form.stays for request in self.requests])
        return stays

    def bring(self) -> None:
        """Have all inputs on the host."""
        for request in self.requests:
            if any(on_device(each) is not None for each in request.data):
                request.data = tuple([to_host(each) for each in request.data])

    def input_end(self) -> None:
        self._input_end_ns = time.monotonic_ns()

    def output_start(self) -> None:
        self._output_start_ns = time.monotonic_ns()

    def settle(self, outputs: Sequence[tuple[TensorSpec, Shape, Buffer]]) -> None:
        """Answer every request with its rows of `outputs`: spec, the backend's full shape, wire bytes (or what stands
        for them on a device)."""
        try:
            columns = [self._share(spec, shape, data) for spec, shape, data in outputs]
        except InferError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001  memory may run out, and the instance's thread must go on
            self.fail(internal(f"the outputs of model '{self.spec.name}' cannot be shared out: {error!r}"))
            return
        for index, request in enumerate(self.requests):
            tensors = [column[index] for column in columns]
            wanted = request.form.outputs
            if wanted is not None:
                tensors = [tensor for tensor in tensors if tensor.name in wanted]
            request.sink.reply(request, InferResponse(tensors), True)
        self._count(self.requests, ())

    def fail(self, error: InferError) -> None:
        """The execution went wrong: the same error for every request."""
        for request in self.requests:
            request.sink.fail(request, error)
        self._count((), self.requests)

    def refuse(self, error: InferError | ValueError, run: Callable[[Sequence[InferRequest]], None]) -> None:
        """Somebody's bytes cannot be given to the model: the others must not answer for it, so each is `run` alone."""
        if len(self.requests) > 1:
            for request in self.requests:
                run([request])
        else:
            self.fail(error if isinstance(error, InferError) else invalid(str(error)))

    def _share(self, spec: TensorSpec, shape: Shape, data: Buffer) -> list[Tensor]:
        """One output, cut into each request's rows."""
        if self._ragged is not None and spec.name in self._ragged.scattered:
            return self._ragged.scatter(self.spec, spec, self.requests, data)
        batching = self.spec.max_batch_size > 0
        if batching and (not shape or shape[0] != self.rows):
            raise internal(
                f"output '{spec.name}' of model '{self.spec.name}' has shape {list(shape)}, "
                f"expected {self.rows} rows in its first dimension for a batch of {self.rows}",
                "make the model keep the batch dimension, or set max_batch_size: 0",
            )
        if spec.reshape is not None:
            lead, rest = (shape[:1], shape[1:]) if batching else ((), shape)
            if len(rest) != len(spec.reshape):
                raise internal(
                    f"output '{spec.name}' of model '{self.spec.name}' has shape {list(shape)}, expected "
                    f"{len(spec.reshape)} dimensions as in its reshape {list(spec.reshape)}"
                )
            shape = lead + carry_shape(rest, spec.reshape, spec.dims)
        if len(self.requests) == 1:
            return [Tensor(spec.name, spec.datatype, shape, data)]
        row = shape[1:]
        offsets = self._offsets(spec, row, data)
        view: Any = memoryview(data) if on_device(data) is None else data
        tensors = []
        begin = 0
        for request in self.requests:
            rows = request.form.rows
            end = begin + rows
            tensors.append(Tensor(spec.name, spec.datatype, (rows, *row), view[offsets[begin] : offsets[end]]))
            begin = end
        return tensors

    def _offsets(self, spec: TensorSpec, row: Shape, data: Buffer) -> list[int]:
        """Where each row of the batch begins in `data`, and where the last ends."""
        per_row = 1
        for size in row:
            per_row *= size
        if self.rows == 0 or per_row == 0:
            return [0] * (self.rows + 1)
        if spec.datatype is BYTES:
            return string_offsets(data, per_row)
        stride = len(data) // self.rows
        return [stride * number for number in range(self.rows + 1)]

    def _count(self, answered: Sequence[InferRequest], failed: Sequence[InferRequest]) -> None:
        now = time.monotonic_ns()
        if self._output_start_ns < self._input_end_ns:
            self._output_start_ns = now
        self._stats.executed(answered, self._start_ns, self._input_end_ns, self._output_start_ns, now, failed)


def drop_cancelled(requests: Sequence[InferRequest], stats: ModelStats) -> Sequence[InferRequest]:
    """The requests somebody still waits for; the others are answered with CANCELLED (and an empty text, as Triton)."""
    gone = [request for request in requests if request.cancelled]
    if not gone:
        return requests
    error = InferError(Code.CANCELLED, "")
    for request in gone:
        request.sink.fail(request, error)
    stats.failed(gone, Reason.CANCELED, time.monotonic_ns())
    return [request for request in requests if request not in gone]
