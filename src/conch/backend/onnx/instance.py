"""Runs batches on an ONNX Runtime session."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.batch import Batch, Shape
from conch.backend.onnx.session import runtime_error
from conch.backend.onnx.strings import from_strings, not_text, to_strings
from conch.backend.ragged import Ragged
from conch.backend.signature import Signature
from conch.observe.stats import ModelStats
from conch.types.dtype import BF16, BYTES
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer, from_numpy, to_numpy

#: TensorProto.DataType.BFLOAT16, a type that numpy lacks.
_ONNX_BF16: Final = 16


class OnnxInstance:
    """One caller of a session, which other instances may share: sessions are safe to run from many threads."""

    def __init__(
        self,
        spec: ModelSpec,
        signature: Signature,
        session: Any,
        options: Any,
        stats: ModelStats,
        ragged: Ragged | None = None,
    ) -> None:
        self._spec = spec
        self._session = session
        self._options = options
        self._stats = stats
        self._ragged = ragged
        self._scalars = frozenset(
            [slot.name for slot in (*signature.takes.values(), *signature.outputs) if not slot.shape]
        )
        if spec.max_batch_size > 0:
            self._scalars = frozenset()
        #: BF16 does not pass through numpy: such models run on bound memory, all others (cheaper) on arrays.
        self._binds = any(each.datatype is BF16 for each in (*spec.inputs, *spec.outputs))
        self._names = [output.name for output in spec.outputs]

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats, self._ragged)
        if not work.requests:
            return
        try:
            feed = self._feed(work)
        except (InferError, ValueError) as error:
            work.refuse(error, self.run)
            return
        except Exception as error:  # noqa: BLE001  memory may run out
            work.fail(runtime_error(error))
            return
        try:
            wanted = work.wanted()
            work.input_end()
            answers = self._compute(feed, [output.name for output in wanted])
            work.output_start()
            outputs = [self._output(work, *pair) for pair in zip(wanted, answers, strict=True)]
        except InferError as error:
            work.fail(error)
        except UnicodeDecodeError:
            work.fail(not_text(self._spec.name))
        except Exception as error:  # noqa: BLE001  the model's errors have no common base
            work.fail(runtime_error(error))
        else:
            work.settle(outputs)

    def close(self) -> None:
        self._session = None

    def _feed(self, work: Batch) -> dict[str, np.ndarray[Any, Any]]:
        """Each input present as an array over the gathered bytes. BF16 as `uint16`."""
        feed = {}
        for position in work.present():
            spec = self._spec.inputs[position]
            shape, data = work.gather(position)
            if spec.name in self._scalars:
                shape = ()
            if spec.datatype is BYTES:
                feed[spec.name] = to_strings(spec.name, shape, data)
                continue
            array = to_numpy(spec.datatype, shape, data)
            # A body may begin anywhere in a packet; vectorised kernels may not read elements across their alignment.
            feed[spec.name] = array if array.flags.aligned else array.copy()
        if self._ragged is not None:
            feed.update(self._ragged.make(work.requests))
        return feed

    def _compute(self, feed: dict[str, np.ndarray[Any, Any]], names: list[str]) -> list[Any]:
        if self._binds:
            return self._compute_bound(feed, names)
        return self._session.run(names, feed, self._options)  # type: ignore[no-any-return]

    def _compute_bound(self, feed: dict[str, np.ndarray[Any, Any]], names: list[str]) -> list[Any]:
        """As `_compute`, but inputs are given and BF16 outputs (as `uint16`) are taken by address."""
        types = {spec.name: spec.datatype for spec in (*self._spec.inputs, *self._spec.outputs)}
        binding = self._session.io_binding()
        for name, array in feed.items():
            if types.get(name) is BF16:
                binding.bind_input(name, "cpu", 0, _ONNX_BF16, list(array.shape), array.ctypes.data)
            else:
                binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding, self._options)
        values = binding.get_outputs()
        return [
            _bf16_view(value) if types[name] is BF16 else value.numpy()
            for name, value in zip(names, values, strict=True)
        ]

    def _output(self, work: Batch, spec: TensorSpec, array: Any) -> tuple[TensorSpec, Shape, Buffer]:
        """`array` in wire form, its shape checked as far as answering needs it."""
        shape = array.shape
        if spec.name in self._scalars and not shape:
            shape = spec.dims if spec.reshape is None else spec.reshape
        lead = 1 if self._spec.max_batch_size > 0 else 0
        scattered = self._ragged is not None and spec.name in self._ragged.scattered
        if spec.reshape is not None and not scattered and len(shape) != len(spec.reshape) + lead:
            raise internal(
                f"output '{spec.name}' of model '{self._spec.name}' has shape {list(shape)}, "
                f"the model configuration's reshape expects {list(spec.reshape)}{' after the batch' if lead else ''}"
            )
        data = from_strings(array) if spec.datatype is BYTES else from_numpy(spec.datatype, array)
        return spec, shape, data


def _bf16_view(value: Any) -> np.ndarray[Any, Any]:
    """The bit patterns of a BF16 OrtValue, without a copy; the array keeps the value alive."""
    shape = tuple(value.shape())
    size = 2
    for dim in shape:
        size *= dim
    if size == 0:
        return np.empty(shape, dtype=BF16.numpy)
    memory = (ctypes.c_char * size).from_address(value.data_ptr())
    memory._owner = value  # type: ignore[attr-defined]
    return np.frombuffer(memoryview(memory), dtype=BF16.numpy).reshape(shape)
