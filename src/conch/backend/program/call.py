"""One request as a function sees it, and how its answers become responses."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from conch.observe.stats import Execution, ModelStats, Reason
from conch.types.dtype import BF16, BYTES, DataType
from conch.types.error import Code, InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, Parameter
from conch.types.response import FINAL, InferResponse
from conch.types.tensor import Buffer, Tensor, from_numpy, to_numpy

_now = time.monotonic_ns


class Settled(RuntimeError):  # noqa: N818  a refusal
    """A call is answered that has its final answer."""

    def __init__(self) -> None:
        super().__init__("the request has its final answer already")


class Call:
    """Answered by one `reply`; of a decoupled model by any number of them and `end`; or by `fail`. Any thread."""

    __slots__ = ("_failed", "_lock", "_post", "_spec", "_stats", "execution", "last_ns", "request", "sent", "settled")

    def __init__(
        self,
        request: InferRequest,
        spec: ModelSpec,
        stats: ModelStats,
        execution: Execution,
        post: Callable[..., object],
    ) -> None:
        """`post` runs a call on the server's loop."""
        self.request = request
        self._spec = spec
        self._stats = stats
        self._post = post
        self.execution = execution
        self.last_ns = execution.start_ns
        self.sent = 0
        #: Whether its final answer has gone, and whether that was an error.
        self.settled = False
        self._failed = False
        self._lock = threading.Lock()

    @property
    def inputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Arrays by name, with the batch dimension if the model batches; they are views and cannot be written to.
        BYTES are objects of `bytes`, BF16 the upper halves of FP32 as `uint16`."""
        form = self.request.form
        return {
            (spec := self._spec.inputs[position]).name: to_numpy(spec.datatype, form.backend_shapes[index], data)
            for index, (position, data) in enumerate(zip(form.inputs, self.request.data, strict=True))
        }

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the client asked for."""
        return self.request.form.outputs or tuple([spec.name for spec in self._spec.outputs])

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return self.request.form.parameters or {}

    @property
    def rows(self) -> int:
        """1 for models that do not batch."""
        return self.request.form.rows

    @property
    def cancelled(self) -> bool:
        """Nobody waits for an answer any more."""
        return self.request.cancelled

    @property
    def succeeded(self) -> bool:
        return self.settled and not self._failed

    def reply(
        self, outputs: Mapping[str, np.ndarray[Any, Any]], parameters: Mapping[str, Parameter] | None = None
    ) -> None:
        """One response. Raises InferError for arrays that are not what the model's config says."""
        request = self.request
        tensors = [
            _tensor(self._spec, spec, outputs[spec.name], self.rows)
            for spec in self._spec.outputs
            if spec.name in self.outputs and spec.name in outputs
        ]
        unknown = outputs.keys() - {spec.name for spec in self._spec.outputs}
        if unknown:
            known = ", ".join([f"'{spec.name}'" for spec in self._spec.outputs])
            raise internal(f"model '{self._spec.name}' gave an output '{min(unknown)}', its outputs are {known}")
        response = InferResponse(tensors, dict(parameters) if parameters else None)
        if not request.form.decoupled:
            self._settle()
            request.sink.reply(request, response, True)
            return
        if self.settled:
            raise Settled
        begun = _now()
        request.sink.reply(request, response, False)
        self._responded("success", begun)

    def end(self) -> None:
        """No more responses of a decoupled model."""
        self._settle()
        self.request.sink.reply(self.request, FINAL, True)
        self._stats.answered(self.request, self.execution, _now())

    def fail(self, error: InferError) -> None:
        """The final answer is an error."""
        self._settle(failed=True)
        self.request.sink.fail(self.request, error)
        if self.request.form.decoupled:
            reason = Reason.CANCELED if error.code is Code.CANCELLED else Reason.BACKEND
            self._stats.failed((self.request,), reason, _now())

    def wait_for_reader(self) -> None:
        """Block while the client of a stream does not keep up; not on an event loop."""
        flow = self.request.flow
        while flow is not None and flow.full and not self.cancelled:
            free = threading.Event()
            self._post(_when_free, flow, free.set)
            free.wait()

    async def reader(self) -> None:
        """As `wait_for_reader`, on a copy's event loop."""
        flow = self.request.flow
        while flow is not None and flow.full and not self.cancelled:
            loop, free = asyncio.get_running_loop(), asyncio.Event()
            self._post(_when_free, flow, partial(_wake, loop, free))
            await free.wait()

    def _settle(self, *, failed: bool = False) -> None:
        with self._lock:
            if self.settled:
                raise Settled
            self._failed = failed
            self.settled = True

    def _responded(self, kind: str, begun: int) -> None:
        end = _now()
        self._stats.responded([(self.sent, kind, begun - self.last_ns, end - begun)])
        self.sent += 1
        self.last_ns = end


def _wake(loop: asyncio.AbstractEventLoop, free: asyncio.Event) -> None:
    """Raises nothing: others wait for the same reader."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(free.set)


def _when_free(flow: Any, call: Callable[[], object]) -> None:
    if flow.full:
        flow.wait(call)
    else:
        call()


def _tensor(model: ModelSpec, spec: TensorSpec, value: Any, rows: int) -> Tensor:
    array = _array(model, spec, value)
    shape = array.shape
    lead = 1 if model.max_batch_size > 0 else 0
    dims = spec.dims if spec.reshape is None else spec.reshape
    good = len(shape) == len(dims) + lead and all(
        dim in (-1, size) for dim, size in zip(dims, shape[lead:], strict=True)
    )
    if not good or (lead and shape[0] != rows):
        wanted = [rows, *dims] if lead else list(dims)
        raise internal(
            f"model '{model.name}' gave output '{spec.name}' with shape {list(shape)}, expected {wanted}",
            "the first dimension is the rows of the request" if lead else "",
        )
    if spec.reshape is not None:
        raise internal(f"model '{model.name}': functions cannot have outputs with reshape ('{spec.name}')")
    return Tensor(spec.name, spec.datatype, shape, _bytes(spec.datatype, array))


def _bytes(datatype: DataType, array: np.ndarray[Any, Any]) -> Buffer:
    """Of its own where the function could write to the array again: answers are sent after it has gone on."""
    found = from_numpy(datatype, array)
    return bytes(found) if isinstance(found, memoryview) and _changeable(array) else found


def _changeable(array: np.ndarray[Any, Any]) -> bool:
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return isinstance(owner, memoryview) and not owner.readonly


def _check_range(model: ModelSpec, spec: TensorSpec, array: np.ndarray[Any, Any]) -> None:
    """A narrower type is fine as long as it holds the values; numpy would cut them off without a word."""
    wanted = spec.datatype.numpy
    if array.dtype == wanted or wanted.kind not in "iu" or np.can_cast(array.dtype, wanted) or not array.size:
        return
    limits = np.iinfo(wanted)
    for value in (int(array.min()), int(array.max())):
        if not limits.min <= value <= limits.max:
            raise internal(
                f"model '{model.name}' gave output '{spec.name}' as an array of {array.dtype} with the value {value}, "
                f"which {spec.datatype} cannot hold (it goes from {limits.min} to {limits.max})",
                "declare a wider type, or give values of the type that is declared",
            )


def _array(model: ModelSpec, spec: TensorSpec, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    wanted: DataType = spec.datatype
    if wanted is BYTES:
        if array.dtype.kind in "OSU":
            return array
    elif wanted is BF16 and array.dtype.itemsize == 2 and array.dtype.kind in "uV":
        return array.view(BF16.numpy)
    elif wanted is not BF16 and (array.dtype == wanted.numpy or np.can_cast(array.dtype, wanted.numpy, "same_kind")):
        _check_range(model, spec, array)
        return array
    raise internal(
        f"model '{model.name}' gave output '{spec.name}' as an array of {array.dtype}, expected {wanted}",
        f"convert it: array.astype({wanted.numpy.name!r})" if wanted not in (BYTES, BF16) else "",
    )
