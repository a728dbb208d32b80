"""Runs batches on an OpenVINO infer request."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.batch import Batch, Shape
from conch.backend.openvino.compiled import Compiled
from conch.backend.openvino.network import runtime, runtime_error
from conch.backend.openvino.signature import ELEMENTS, Slot, find_slot
from conch.backend.portions import cut, parts
from conch.observe.stats import ModelStats
from conch.types.dtype import INT64, UINT64
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer, to_numpy

_LOG: Final = logging.getLogger(__name__)
#: Outputs of at least so many bytes are answered from the memory that OpenVINO wrote them into, which the infer request
#: gives away; smaller ones are copied (4 KB: 0.3 us against 2).
_LARGE: Final = 1 << 16
#: The largest integer that OpenVINO's CPU device computes with.
_MOST: Final = (1 << 31) - 1


class OpenvinoInstance:
    """One caller of a compiled network; instances run in threads of their own, each on its stream."""

    def __init__(self, spec: ModelSpec, network: Compiled, stats: ModelStats, *, rows: int, pad: bool) -> None:
        """`rows` is the model's fixed batch, 0 for any; `pad` whether missing rows are made up."""
        ov = runtime()
        self._spec = spec
        self._stats = stats
        self._most = network.most
        self._request = network.request()
        self._tensor = ov.Tensor
        self._rows = rows
        self._pad = pad
        #: By position in the spec: the model's port, its type, and whether it is a scalar.
        self._inputs = [_port(ov, each, network.signature.inputs) for each in spec.inputs]
        self._outputs = {each.name: _port(ov, each, network.signature.outputs) for each in spec.outputs}
        #: Positions of inputs that may hold more than the device computes with.
        self._narrow = {
            position
            for position, each in enumerate(spec.inputs)
            if network.on_cpu and (each.datatype is INT64 or each.datatype is UINT64)
        }
        #: A model with a memory keeps it in the infer request; requests must not see one another's.
        self._remembers = bool(self._request.query_state())

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        if not self._most:
            self._execute(batch)
            return
        for part in parts(batch, cut([request.form.rows for request in batch], self._most)):
            self._execute(part)

    def _execute(self, batch: Sequence[InferRequest]) -> None:
        work = Batch(self._spec, batch, self._stats)
        if not work.requests:
            return
        request = self._request
        try:
            # OpenVINO reads the arrays where they are: they have to live until it has run.
            kept = self._give(work, request)
        except (InferError, ValueError) as error:
            work.refuse(error, self.run)
            return
        except Exception as error:  # noqa: BLE001  OpenVINO's errors have no common base
            work.refuse(runtime_error("setting tensor data", error), self.run)
            return
        try:
            work.input_end()
            if self._remembers:
                request.reset_state()
            request.infer(share_outputs=True)
            work.output_start()
            wanted = work.wanted()
            outputs = [self._take(work, request, spec) for spec in wanted]
            self._renew(request, wanted)
        except InferError as error:
            work.fail(error)
        except Exception as error:  # noqa: BLE001  the model's errors have no common base
            work.fail(runtime_error("running inference", error))
        else:
            work.settle(outputs)
        finally:
            del kept

    def close(self) -> None:
        self._request = None

    def _give(self, work: Batch, request: Any) -> list[np.ndarray[Any, Any]]:
        """Set every input of the infer request; the arrays that hold them."""
        kept = []
        for position in work.present():
            spec = self._spec.inputs[position]
            index, element, scalar = self._inputs[position]
            shape, data = work.gather(position)
            if self._rows and shape[0] != self._rows:
                shape, data = self._padded(shape, data, spec.datatype.size)
            array = to_numpy(spec.datatype, shape, data)
            if not array.flags.aligned:
                # A body may begin anywhere in a packet; vectorised kernels may not read across alignment.
                array = array.copy()
            if position in self._narrow:
                self._look(position, array)
            request.set_input_tensor(index, self._tensor(array, [] if scalar else shape, element))
            kept.append(array)
        return kept

    def _padded(self, shape: Shape, data: Buffer, size: int) -> tuple[Shape, Buffer]:
        if not self._pad:
            raise internal(
                f"expected requests with batch size '{self._rows}', got '{shape[0]}'... this error can be avoided by "
                "setting 'ENABLE_BATCH_PADDING' parameter in model configuration to 'YES' at a performance cost.",
                "or remove SKIP_OV_DYNAMIC_BATCHSIZE, if the model can run batches of any size",
            )
        full = bytearray(math.prod(shape[1:]) * size * self._rows)
        full[: len(data)] = data
        return (self._rows, *shape[1:]), full

    def _look(self, position: int, array: np.ndarray[Any, Any]) -> None:
        """OpenVINO's CPU device cuts 64-bit integers to 32 bits without a word; we say one. Triton does not."""
        if array.size and (array.max() > _MOST or array.min() < -_MOST - 1):
            self._narrow.discard(position)
            spec = self._spec.inputs[position]
            _LOG.warning(
                "model '%s': input '%s' holds %d; OpenVINO computes %s on CPUs with 32 bits, larger values are cut off "
                "(use backend: \"onnxruntime\" where that matters)",
                self._spec.name, spec.name, max(int(array.max()), int(array.min()), key=abs), spec.datatype,
            )  # fmt: skip

    def _take(self, work: Batch, request: Any, spec: TensorSpec) -> tuple[TensorSpec, Shape, Buffer]:
        """One output of the run in wire form."""
        index, _, scalar = self._outputs[spec.name]
        tensor = request.get_output_tensor(index)
        array, shape = tensor.data, tuple(tensor.shape)
        if self._rows and shape and shape[0] == self._rows != work.rows:
            array, shape = array[: work.rows], (work.rows, *shape[1:])
        if scalar:
            shape = spec.dims if spec.reshape is None else spec.reshape
        if array.nbytes < _LARGE:
            return spec, shape, array.tobytes()
        return spec, shape, array.reshape(-1).view(np.uint8).data

    def _renew(self, request: Any, wanted: Sequence[TensorSpec]) -> None:
        """The next run writes elsewhere than into what was given away, once all is taken: names may share a tensor."""
        for spec in wanted:
            index, element, _ = self._outputs[spec.name]
            tensor = request.get_output_tensor(index)
            if tensor.byte_size >= _LARGE:
                request.set_output_tensor(index, self._tensor(element, tensor.shape))


def _port(ov: Any, spec: TensorSpec, slots: Sequence[Slot]) -> tuple[int, Any, bool]:
    slot = find_slot(slots, spec.name)
    assert slot is not None, "the config was checked against the model"
    return slot.index, getattr(ov.Type, ELEMENTS[spec.datatype]), slot.shape == ()
