"""Runs batches on a TensorRT engine: one stream an instance, one execution context a profile."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from conch.backend.batch import Batch
from conch.backend.tensorrt.graphs import Graphs
from conch.backend.tensorrt.library import calling_for, checked, last_error
from conch.backend.tensorrt.measured import Measured, measure
from conch.backend.tensorrt.memory import Hosted, Passage, Shelf
from conch.backend.tensorrt.options import EnginePlan
from conch.backend.tensorrt.profiles import choose
from conch.backend.tensorrt.signature import Shape, Signature
from conch.memory.cuda import reader
from conch.memory.pinned import PinnedPool, pageable
from conch.observe.stats import ModelStats
from conch.types.device import as_buffer, gpu
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer

_LOG: Final = logging.getLogger(__name__)


class TensorRtInstance:
    """Made, run and closed with its device current; everything of CUDA's is its own."""

    def __init__(
        self,
        spec: ModelSpec,
        signature: Signature,
        profiles: tuple[int, ...],
        engine: Any,
        trt: Any,
        cuda: Any,
        device: int,
        plan: EnginePlan,
        stats: ModelStats,
        pool: PinnedPool,
    ) -> None:
        self._spec = spec
        self._signature = signature
        self._profiles = profiles
        self._cuda = cuda
        self._device = device
        self._stats = stats
        self._graphs: Graphs | None = None
        self._slots = {slot.name: slot for slot in (*signature.inputs, *signature.outputs)}
        pool.open(device)
        self._take_input = pool.take if plan.pinned_input else pageable
        self._take_output = pool.take if plan.pinned_output else pageable
        self._read = reader(device)
        self._passages: dict[str, Passage | Hosted] = {}
        #: Outputs whose shape only the run tells.
        self._measured: dict[str, Measured] = {}
        #: Pieces for outputs that stay on the device.
        self._shelves: dict[str, Shelf] = {}
        self._contexts: dict[int, Any] = {}
        # While a blocking stream is recorded, nobody in the process can use CUDA's default stream.
        self._stream = checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        try:
            strategy = getattr(trt.ExecutionContextAllocationStrategy, plan.strategy)
            for profile in profiles:
                self._open(engine, profile, strategy)
            self._allocate(trt)
            if plan.graphs:
                self._begin_graphs()
        except BaseException:
            self.close()
            raise

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats)
        if not work.requests:
            return
        # Everything that copies go through is in use until the stream is done, also after an error.
        held: list[Any] = []
        try:
            calling_for(self._spec.name)
            checked(self._cuda.cudaSetDevice(self._device))
            gathered = {self._spec.inputs[position].name: work.parts(position) for position in work.present()}
            shapes = {name: self._full(name, shape) for name, (shape, _) in gathered.items()}
            asked = {name: self._asked(name, shapes[name], parts) for name, (_, parts) in gathered.items()}
            profile = choose(self._spec.name, self._signature, self._profiles, asked)
            context = self._contexts[profile]
            for name, (_, parts) in gathered.items():
                held += self._passages[name].send(parts, self._stream, self._take_input)
            found = self._shape(context, shapes)
            self._make_room(found)
            work.input_end()
            found |= self._execute(context, (profile, tuple(shapes.values())))
            stays = work.staying()
            for output in self._spec.outputs:
                held.append(self._answer(output.name, self._size(output.name, found[output.name]), stays))
            checked(self._cuda.cudaStreamSynchronize(self._stream))
            work.output_start()
            answers = held[-len(self._spec.outputs) :]
            outputs = [
                (output, found[output.name], answer) for output, answer in zip(self._spec.outputs, answers, strict=True)
            ]
        except InferError as error:
            self._wait()
            work.fail(error)
        except Exception as error:  # noqa: BLE001  TensorRT's errors have no common base
            self._wait()
            work.fail(internal(f"model '{self._spec.name}', TensorRT: {error or type(error).__name__}"))
        else:
            work.settle(outputs)

    def _wait(self) -> None:
        """After an error: what the stream still copies from and to must outlive that."""
        self._cuda.cudaStreamSynchronize(self._stream)

    def _answer(self, name: str, size: int, stays: frozenset[str]) -> Buffer:
        """What will be an output's bytes, or stand for them, once the stream is done."""
        passage = self._passages[name]
        if name not in stays or isinstance(passage, Hosted):
            return passage.fetch(size, self._stream, self._take_output).data
        shelf = self._shelves.get(name)
        if shelf is None or shelf.capacity < passage.capacity:
            if shelf is not None:
                shelf.close()
            shelf = self._shelves[name] = Shelf(self._cuda, passage.capacity)
        return as_buffer(passage.leave(size, self._stream, shelf, self._read))

    def close(self) -> None:
        self._cuda.cudaSetDevice(self._device)
        if self._graphs is not None:
            self._graphs.forget()
        # Contexts before the memory that they point to.
        self._contexts.clear()
        for passage in self._passages.values():
            passage.close()
        self._passages.clear()
        self._measured.clear()
        for shelf in self._shelves.values():
            shelf.close()
        self._shelves.clear()
        if self._stream is not None:
            self._cuda.cudaStreamDestroy(self._stream)
            self._stream = None

    def _open(self, engine: Any, profile: int, strategy: Any) -> None:
        context = engine.create_execution_context(strategy)
        if context is None or not context.set_optimization_profile_async(profile, int(self._stream)):
            raise internal(f"unable to load model '{self._spec.name}', TensorRT cannot use profile {profile}")
        self._contexts[profile] = context
        checked(self._cuda.cudaStreamSynchronize(self._stream))

    def _allocate(self, trt: Any) -> None:
        """Room for the largest batch of any profile; addresses stay, which recorded graphs need."""
        for slot in self._signature.hosted:
            self._passages[slot.name] = Hosted(self._size(slot.name, slot.shape))
            self._point(slot.name)
        sizes = dict.fromkeys(self._slots.keys() - self._passages.keys(), 0)
        unknown: set[str] = set()
        for profile, context in self._contexts.items():
            largest = {slot.name: slot.ranges[profile].most for slot in self._signature.inputs if slot.name in sizes}
            found = largest | self._shape(context, self._foreseen(profile))
            unknown |= {name for name, shape in found.items() if -1 in shape}
            sizes = {
                name: size if name in unknown else max(size, self._size(name, found[name]))
                for name, size in sizes.items()
            }
        for name, size in sizes.items():
            passage = self._passages[name] = Passage(self._cuda, size, gpu(self._device))
            if name in unknown:
                self._measured[name] = measure(trt, passage)
            self._point(name)

    def _foreseen(self, profile: int) -> dict[str, Shape]:
        """The largest inputs' shapes. With shape tensors those that the profile was tuned for, whose values are set:
        of all that it takes they alone are sure to go together, and outputs get more memory when they need it.
        """
        if not self._signature.hosted:
            return {slot.name: slot.ranges[profile].most for slot in self._signature.inputs}
        shapes = {}
        for slot in self._signature.inputs:
            best = slot.ranges[profile].best
            shapes[slot.name] = slot.shape if slot.shape_tensor else best
            if slot.shape_tensor:
                values = np.array(best, slot.datatype.numpy).tobytes()
                self._passages[slot.name].send([values], self._stream, self._take_input)
        return shapes

    def _point(self, name: str) -> None:
        """Tell all contexts where a tensor is."""
        measured, address = self._measured.get(name), self._passages[name].address
        for context in self._contexts.values():
            told = (
                context.set_tensor_address(name, address)
                if measured is None
                else context.set_output_allocator(name, measured)
            )
            if not told:
                raise internal(f"model '{self._spec.name}', TensorRT refuses memory for '{name}'")

    def _begin_graphs(self) -> None:
        apart = [*self._measured, *[slot.name for slot in self._signature.hosted]]
        if apart:
            _LOG.warning(
                "model '%s' is served without CUDA graphs: a recorded run would not see that '%s' has other sizes",
                self._spec.name, apart[0],
            )  # fmt: skip
            return
        self._graphs = Graphs(self._cuda, self._stream, self._spec.name, self._enqueue)

    def _make_room(self, found: dict[str, Shape]) -> None:
        """Outputs may be larger than those of the largest inputs; recorded graphs have the old addresses then."""
        for name, shape in found.items():
            passage = self._passages[name]
            if name in self._measured or isinstance(passage, Hosted):
                continue
            if -1 in shape:
                raise internal(f"model '{self._spec.name}', TensorRT does not tell the shape of output '{name}'")
            if passage.reserve(self._size(name, shape)):
                self._point(name)
                if self._graphs is not None:
                    self._graphs.forget()

    def _size(self, name: str, shape: Shape) -> int:
        return math.prod(shape) * self._slots[name].datatype.size

    def _asked(self, name: str, shape: Shape, parts: Sequence[Buffer]) -> Shape:
        """What profiles are chosen by: the shape, or a shape tensor's values."""
        slot = self._slots[name]
        if not slot.shape_tensor:
            return shape
        return tuple(np.frombuffer(b"".join([bytes(each) for each in parts]), slot.datatype.numpy).tolist())

    def _full(self, name: str, shape: Shape) -> Shape:
        # A scalar of the engine is one element to clients.
        return shape if self._slots[name].shape else ()

    def _shape(self, context: Any, shapes: dict[str, Shape]) -> dict[str, Shape]:
        """Give `context` the inputs' shapes; those of the outputs, with -1 for what only the run tells."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise internal(f"model '{self._spec.name}', TensorRT refuses shape {list(shape)} for '{name}'")
        if self._signature.hosted and (missing := context.infer_shapes()):
            raise internal(f"model '{self._spec.name}', TensorRT lacks what {', '.join(missing)} should tell")
        return {slot.name: tuple(context.get_tensor_shape(slot.name)) for slot in self._signature.outputs}

    def _execute(self, context: Any, key: tuple[int, tuple[Shape, ...]]) -> dict[str, Shape]:
        """Begin the run; the shapes that it alone tells."""
        for each in self._measured.values():
            each.shape = None
        if self._graphs is not None:
            self._graphs.run(context, key)
        else:
            self._enqueue(context)
        found = {}
        for name, each in self._measured.items():
            if each.shape is None:
                raise internal(f"model '{self._spec.name}', TensorRT did not tell the shape of output '{name}'")
            found[name] = each.shape
        return found

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise internal(
                f"model '{self._spec.name}', TensorRT cannot run the batch ({last_error() or 'its log says why'})"
            )
