"""Runs batches on a TensorRT engine: one stream an instance, one execution context a profile."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

from conch.backend.batch import Batch
from conch.backend.tensorrt.library import checked
from conch.backend.tensorrt.memory import Passage, Shelf
from conch.backend.tensorrt.options import EnginePlan
from conch.backend.tensorrt.profiles import choose
from conch.backend.tensorrt.signature import Shape, Signature, Slot
from conch.memory.cuda import reader
from conch.memory.pinned import PinnedPool, pageable
from conch.observe.stats import ModelStats
from conch.types.device import as_buffer, gpu
from conch.types.error import InferError, internal, unsupported
from conch.types.model import ModelSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer

_LOG: Final = logging.getLogger(__name__)
#: Graphs of shapes that were met long ago are thrown away.
_MOST_GRAPHS: Final = 64


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
        self._graphing = plan.graphs
        self._graphs: dict[tuple[int, tuple[Shape, ...]], Any] = {}
        #: Profile -> what its context has run last, unless that was a recorded graph.
        self._last: dict[int, tuple[int, tuple[Shape, ...]]] = {}
        self._slots = {slot.name: slot for slot in (*signature.inputs, *signature.outputs)}
        pool.open(device)
        self._take_input = pool.take if plan.pinned_input else pageable
        self._take_output = pool.take if plan.pinned_output else pageable
        self._read = reader(device)
        self._passages: dict[str, Passage] = {}
        #: Pieces for outputs that stay on the device.
        self._shelves: dict[str, Shelf] = {}
        self._contexts: dict[int, Any] = {}
        self._stream = checked(cuda.cudaStreamCreate())
        try:
            strategy = getattr(trt.ExecutionContextAllocationStrategy, plan.strategy)
            for profile in profiles:
                self._open(engine, profile, strategy)
            self._allocate()
        except BaseException:
            self.close()
            raise

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats)
        if not work.requests:
            return
        try:
            checked(self._cuda.cudaSetDevice(self._device))
            gathered = {self._spec.inputs[position].name: work.parts(position) for position in work.present()}
            shapes = {name: self._full(name, shape) for name, (shape, _) in gathered.items()}
            profile = choose(self._spec.name, self._signature, self._profiles, shapes)
            context = self._contexts[profile]
            found = self._shape(context, shapes)
            sizes = {slot.name: math.prod(found[slot.name]) * slot.datatype.size for slot in self._signature.outputs}
            self._check_room(found, sizes)
            # On the host what is on its way, and the answers; in use until the stream is done.
            staged = [
                self._passages[name].send(parts, self._stream, self._take_input)
                for name, (_, parts) in gathered.items()
            ]
            work.input_end()
            self._execute(context, (profile, tuple(shapes.values())))
            stays = work.staying()
            answers = [self._answer(output.name, sizes[output.name], stays) for output in self._spec.outputs]
            checked(self._cuda.cudaStreamSynchronize(self._stream))
            del staged
            work.output_start()
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
        if name not in stays:
            return passage.fetch(size, self._stream, self._take_output).data
        shelf = self._shelves.get(name)
        if shelf is None:
            shelf = self._shelves[name] = Shelf(self._cuda, passage.capacity)
        return as_buffer(passage.leave(size, self._stream, shelf, self._read))

    def close(self) -> None:
        self._cuda.cudaSetDevice(self._device)
        for graph in self._graphs.values():
            self._cuda.cudaGraphExecDestroy(graph)
        self._graphs.clear()
        # Contexts before the memory that they point to.
        self._contexts.clear()
        for passage in self._passages.values():
            passage.close()
        self._passages.clear()
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

    def _allocate(self) -> None:
        """Room for the largest batch of any profile; addresses stay, which recorded graphs need."""
        sizes = dict.fromkeys(self._slots, 0)
        for profile, context in self._contexts.items():
            shapes = {slot.name: slot.ranges[profile].most for slot in self._signature.inputs}
            found = {**shapes, **self._shape(context, shapes)}
            for name, shape in found.items():
                sizes[name] = max(sizes[name], math.prod(shape) * self._slots[name].datatype.size)
        for name, size in sizes.items():
            self._passages[name] = Passage(self._cuda, size, gpu(self._device))
        for context in self._contexts.values():
            for name, passage in self._passages.items():
                if not context.set_tensor_address(name, passage.address):
                    raise internal(f"unable to load model '{self._spec.name}', TensorRT refuses memory for '{name}'")

    def _check_room(self, found: dict[str, Shape], sizes: dict[str, int]) -> None:
        """Raises InferError before TensorRT writes behind an output's memory: the largest inputs gave less."""
        for name, size in sizes.items():
            if size > self._passages[name].capacity:
                raise unsupported(
                    f"model '{self._spec.name}', output '{name}' has shape {list(found[name])}, larger than for the "
                    "largest inputs of the engine's profiles, which is not supported",
                    "build the network with outputs that grow with the inputs",
                )

    def _full(self, name: str, shape: Shape) -> Shape:
        # A scalar of the engine is one element to clients.
        return shape if self._slots[name].shape else ()

    def _shape(self, context: Any, shapes: dict[str, Shape]) -> dict[str, Shape]:
        """Give `context` the inputs' shapes; those of the outputs."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise internal(f"model '{self._spec.name}', TensorRT refuses shape {list(shape)} for '{name}'")
        return {slot.name: self._output_shape(context, slot) for slot in self._signature.outputs}

    def _output_shape(self, context: Any, slot: Slot) -> Shape:
        shape = tuple(context.get_tensor_shape(slot.name))
        if -1 in shape:
            raise unsupported(
                f"model '{self._spec.name}', the shape of output '{slot.name}' depends on the data, which is not "
                "supported",
                "build the network with outputs whose shapes follow from those of the inputs",
            )
        return shape

    def _execute(self, context: Any, key: tuple[int, tuple[Shape, ...]]) -> None:
        graph = self._graphs.get(key)
        last = self._last.pop(key[0], None)
        if graph is not None:
            checked(self._cuda.cudaGraphLaunch(graph, self._stream))
            return
        # TensorRT prepares shapes in the first run after they change, which must not be recorded.
        if self._graphing and last == key:
            self._record(context, key)
            return
        self._enqueue(context)
        self._last[key[0]] = key

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(int(self._stream)):
            raise internal(f"model '{self._spec.name}', TensorRT cannot run the batch (its log says why)")

    def _record(self, context: Any, key: tuple[int, tuple[Shape, ...]]) -> None:
        """Record the run as a graph and launch it; engines that cannot be recorded are run as ever from then on."""
        cuda = self._cuda
        # What was sent is on its way: only the run itself belongs to the graph.
        checked(cuda.cudaStreamSynchronize(self._stream))
        checked(cuda.cudaStreamBeginCapture(self._stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        recorded, made, why = False, None, "TensorRT's log says why"
        try:
            recorded = context.execute_async_v3(int(self._stream))
        except Exception as error:  # noqa: BLE001  TensorRT's errors have no common base
            why = str(error)
        # A stream that went on recording would run nothing any more.
        code, graph = cuda.cudaStreamEndCapture(self._stream)
        if recorded and int(code):
            why = f"cudaStreamEndCapture gave {code}"
        elif recorded:
            code, made = cuda.cudaGraphInstantiate(graph, 0)
            why = f"cudaGraphInstantiate gave {code}"
        if graph is not None:
            cuda.cudaGraphDestroy(graph)
        if not recorded or int(code):
            self._graphing = False
            _LOG.warning(
                "model '%s' is served without CUDA graphs: its engine's run cannot be recorded (%s)",
                self._spec.name, why,
            )  # fmt: skip
            self._enqueue(context)
            return
        if len(self._graphs) >= _MOST_GRAPHS:
            cuda.cudaGraphExecDestroy(self._graphs.pop(next(iter(self._graphs))))
        self._graphs[key] = made
        checked(cuda.cudaGraphLaunch(made, self._stream))
