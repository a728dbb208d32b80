"""Runs batches on a PyTorch program in the server's process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from conch.backend.batch import Batch, Shape
from conch.backend.ragged import Ragged
from conch.backend.torch.carrier import Carrier
from conch.backend.torch.device import Cpu, Gpu
from conch.backend.torch.naming import Bindings, no_output
from conch.backend.torch.parameters import TorchPlan
from conch.backend.torch.program import Program
from conch.backend.torch.runtime import (
    datatypes,
    execute_failure,
    release_gpus,
    runtime,
    settle_thread,
    switch,
    torch_types,
)
from conch.backend.torch.signature import Holds
from conch.observe.stats import ModelStats
from conch.types.device import as_buffer
from conch.types.dtype import BF16, BYTES
from conch.types.error import InferError, internal, invalid
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer, from_numpy, join_bytes, split_bytes, to_numpy

#: numpy has no BF16: its bits travel as these.
_BITS: Final = np.dtype("<i2")
_NONE: Final[frozenset[str]] = frozenset()


class TorchInstance:
    """One caller of a program, which other instances may share. Threads and streams are its own."""

    def __init__(
        self,
        spec: ModelSpec,
        program: Program,
        bindings: Bindings,
        device: Cpu | Gpu,
        plan: TorchPlan,
        threads: int,
        stats: ModelStats,
        ragged: Ragged | None,
        *,
        may_lie_elsewhere: bool = False,
    ) -> None:
        """`may_lie_elsewhere`: on a CPU, whether inputs may come that lie on a GPU all the same."""
        torch = runtime()
        self._spec = spec
        self._program: Program | None = program
        self._bindings = bindings
        self._device = device
        self._plan = plan
        self._threads = threads
        self._stats = stats
        self._ragged = ragged
        self._carrier = device.carrier
        self._brings = may_lie_elsewhere
        self._tensor = torch.Tensor
        self._bfloat16 = torch.bfloat16
        self._int16 = torch.int16
        self._from_numpy = torch.from_numpy
        self._mode = torch.inference_mode if plan.inference_mode else torch.no_grad
        # A request's bytes are not ours to change, nor is what the model remembers the client's to watch.
        self._copies_inputs = program.signature.writes_inputs
        self._copies_outputs = program.signature.keeps_state

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats, self._ragged)
        if not work.requests:
            return
        try:
            if self._brings:
                work.bring()
            settle_thread(self._threads, self._plan.optimized)
            if self._plan.jit_switches:
                switch(self._plan)
            with self._device.work(), self._mode():
                outputs = self._execute(work)
        except InferError as error:
            work.fail(error)
        except Exception as error:  # noqa: BLE001  the model's errors have no common base
            work.fail(execute_failure(error))
        else:
            work.settle(outputs)

    def close(self) -> None:
        self._program = None
        release_gpus()

    def _execute(self, work: Batch) -> list[tuple[TensorSpec, Shape, Buffer]]:
        assert self._program is not None, "the instance is closed"
        arguments = self._arguments(work)
        work.input_end()
        answer = self._program(arguments, self._bindings.inputs)
        stays = _NONE if self._carrier is None else work.staying()
        fetched = [(spec, self._pick(answer, spec, stay=spec.name in stays)) for spec in work.wanted()]
        # On a GPU the model is done when its results are here.
        self._device.finish()
        work.output_start()
        return [self._output(spec, value, stay=spec.name in stays) for spec, value in fetched]

    def _arguments(self, work: Batch) -> dict[int, Any]:
        """Each input present, by the index of its argument."""
        places = self._bindings.inputs
        arguments = {}
        for number in work.present():
            spec = self._spec.inputs[number]
            if self._carrier is not None and spec.datatype is not BYTES:
                arguments[places[spec.name]] = self._carried(self._carrier, spec, *work.parts(number))
                continue
            shape, data = work.gather(number)
            if spec.datatype is BYTES:
                arguments[places[spec.name]] = self._strings(spec, data)
            else:
                arguments[places[spec.name]] = self._view(spec, shape, data)
        if self._ragged is not None:
            for name, array in self._ragged.make(work.requests).items():
                made = self._from_numpy(array)
                arguments[places[name]] = made if self._carrier is None else self._carrier.bring(made)
        return arguments

    def _carried(self, carrier: Carrier, spec: TensorSpec, shape: Shape, parts: Sequence[Buffer]) -> Any:
        """The requests' bytes as one tensor on the instance's device."""
        flat = carrier.join(parts, own=self._copies_inputs)
        return flat.view(torch_types()[spec.datatype]).reshape(shape)

    def _view(self, spec: TensorSpec, shape: Shape, data: Buffer) -> Any:
        """The gathered bytes as a tensor, without a copy where that is safe."""
        array = to_numpy(spec.datatype, shape, data)
        # A body may begin anywhere in a packet; vectorised kernels may not read elements across their alignment.
        if self._copies_inputs or not array.flags.aligned:
            array = array.copy()
        if spec.datatype is BF16:
            return self._from_numpy(array.view(_BITS)).view(self._bfloat16)
        return self._from_numpy(array)

    def _strings(self, spec: TensorSpec, data: Buffer) -> list[bytes] | list[str]:
        elements = split_bytes(data)
        program = self._program
        assert program is not None
        if not program.signature.dictionary:
            takes = program.signature.arguments[self._bindings.inputs[spec.name]].holds
            if takes is not Holds.STRINGS:
                raise invalid(
                    f"input '{spec.name}' of model '{self._spec.name}' is TYPE_STRING, its forward takes {takes.value}",
                    "declare the argument as List[str], or send numbers",
                )
        # TorchScript's strings are bytes, whatever is in them.
        return elements

    def _pick(self, answer: list[Any] | Mapping[str, Any], spec: TensorSpec, *, stay: bool) -> Any:
        """The result that an output is, on its way to the host, unless it is to `stay` and can."""
        index = self._bindings.outputs[spec.name]
        if isinstance(answer, Mapping):
            if spec.name in answer:
                return self._fetch(answer[spec.name], stay)
            names, values = list(answer), list(answer.values())
        else:
            names, values = [], list(answer)
        if index >= len(values):
            raise no_output(spec.name, len(values), names)
        return self._fetch(values[index], stay)

    def _fetch(self, value: Any, stay: bool) -> Any:
        if not isinstance(value, self._tensor):
            return value
        value = value.detach()
        if stay and self._carrier is not None and self._carrier.keeps(value):
            # What is still to be done to it begins before the stream is waited for.
            return value.clone().contiguous() if self._copies_outputs else value.contiguous()
        return self._device.fetch(value)

    def _output(self, spec: TensorSpec, value: Any, *, stay: bool) -> tuple[TensorSpec, Shape, Buffer]:
        """The result in wire form, or where it is."""
        if not isinstance(value, self._tensor):
            data = self._text(spec, value)
            return spec, (len(value),), data
        found = datatypes().get(value.dtype)
        if found is not spec.datatype:
            raise invalid(
                f"configuration expects datatype TYPE_{spec.datatype.name} for output '{spec.name}', model provides "
                f"TYPE_{found.name if found else str(value.dtype).removeprefix('torch.')}",
                f"set data_type: {found.config_name}" if found else "",
            )
        if not value.dim():
            raise invalid(
                f"output '{spec.name}' is a scalar which is not supported.",
                "return it with a dimension: value.reshape(1)",
            )
        shape = tuple(value.shape)
        if stay and self._carrier is not None and self._carrier.keeps(value):
            return spec, shape, as_buffer(self._carrier.left(value))
        value = value.clone() if self._copies_outputs else value.contiguous()
        if found is BF16:
            value = value.view(self._int16)
        array = value.contiguous().numpy()
        return spec, shape, from_numpy(found, array.view(BF16.numpy) if found is BF16 else array)

    def _text(self, spec: TensorSpec, value: Any) -> bytes:
        if spec.datatype is not BYTES or not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise invalid(
                f"output '{spec.name}' must be of type Tensor or List[str].",
                f"model '{self._spec.name}' returned {type(value).__name__} for an output of type "
                f"{spec.datatype.config_name}",
            )
        try:
            return join_bytes(value)
        except UnicodeEncodeError:
            raise internal(f"output '{spec.name}' of model '{self._spec.name}' holds text that is no Unicode") from None
