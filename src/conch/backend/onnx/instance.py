"""Runs batches on an ONNX Runtime session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.batch import Batch, Shape
from conch.backend.onnx.bound import Left, Lying, Placed, run_bound
from conch.backend.onnx.session import runtime_error
from conch.backend.onnx.strings import from_strings, not_text, to_strings
from conch.backend.ragged import Ragged
from conch.backend.signature import Signature
from conch.observe.stats import ModelStats
from conch.types.device import on_device
from conch.types.dtype import BF16, BYTES
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer, from_numpy, to_numpy

_NONE: Final[frozenset[str]] = frozenset()
Feed = dict[str, np.ndarray[Any, Any] | Lying]


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
        placed: Placed | None = None,
        *,
        may_lie_elsewhere: bool = False,
    ) -> None:
        """`placed` is the GPU that the session computes on, where its tensors may lie there; `may_lie_elsewhere`: on a
        CPU, whether inputs may come that lie on a GPU all the same."""
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
        self._types = {each.name: each.datatype for each in (*spec.inputs, *spec.outputs)}
        self._placed = placed
        self._brings = may_lie_elsewhere

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats, self._ragged)
        if not work.requests:
            return
        try:
            if self._brings:
                work.bring()
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
            stays = _NONE if self._placed is None else work.staying()
            answers = self._compute(feed, [output.name for output in wanted], stays)
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

    def _feed(self, work: Batch) -> Feed:
        """Each input present as an array over the gathered bytes. BF16 as `uint16`."""
        feed: Feed = {}
        for position in work.present():
            spec = self._spec.inputs[position]
            if self._placed is not None:
                lying = self._lying(self._placed, work, position)
                if lying is not None:
                    feed[spec.name] = lying
                    continue
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

    def _lying(self, placed: Placed, work: Batch, position: int) -> Lying | None:
        """An input of which some lies on the device; None where all is on the host, or has been brought there."""
        spec = self._spec.inputs[position]
        shape, parts = work.parts(position)
        if all(on_device(each) is None for each in parts):
            return None
        found = placed.input(spec.datatype, () if spec.name in self._scalars else shape, parts)
        if found is None:
            work.bring()
        return found

    def _compute(self, feed: Feed, names: list[str], stays: frozenset[str]) -> list[Any]:
        if self._binds or stays or (self._placed is not None and any(type(each) is Lying for each in feed.values())):
            return run_bound(self._session, self._options, feed, names, self._types, self._placed, stays)
        return self._session.run(names, feed, self._options)  # type: ignore[no-any-return]

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
        if type(array) is Left:
            return spec, shape, array.data
        data = from_strings(array) if spec.datatype is BYTES else from_numpy(spec.datatype, array)
        return spec, shape, data
