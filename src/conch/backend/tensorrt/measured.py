"""Outputs whose shape only the run itself tells, and whose memory TensorRT asks for meanwhile."""

from __future__ import annotations

from typing import Any, Protocol

from conch.backend.tensorrt.memory import Passage
from conch.backend.tensorrt.signature import Shape
from conch.types.error import InferError


class Measured(Protocol):
    """One output; implements `tensorrt.IOutputAllocator`."""

    #: What the run has made of it; None before.
    shape: Shape | None


def measure(trt: Any, passage: Passage) -> Measured:
    """What contexts are told of an output whose bytes are to be in `passage`, one run at a time."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: Shape | None = None

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            """An address for `size` bytes, also for none; 0 where there is no memory, and the run fails."""
            try:
                passage.reserve(size, alignment)
            except InferError:
                return 0
            return passage.address

        def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    made: Measured = Allocator()
    return made
