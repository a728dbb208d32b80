"""Runs that are recorded as CUDA graphs, one for each shape, and launched from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from conch.backend.tensorrt.library import checked
from conch.backend.tensorrt.signature import Shape

_LOG: Final = logging.getLogger(__name__)
#: Graphs of shapes that were met long ago are thrown away.
_MOST: Final = 64
#: A profile, and the shapes of all inputs.
Key = tuple[int, tuple[Shape, ...]]


class Graphs:
    """Of one stream. `enqueue` begins a run of a context as ever. Raises InferError."""

    def __init__(self, cuda: Any, stream: Any, model: str, enqueue: Callable[[Any], None]) -> None:
        self._cuda = cuda
        self._stream = stream
        self._model = model
        self._enqueue = enqueue
        self._recording = True
        self._made: dict[Key, Any] = {}
        #: Profile -> what its context has run last, unless that was a recorded graph.
        self._last: dict[int, Key] = {}

    def run(self, context: Any, key: Key) -> None:
        graph = self._made.get(key)
        last = self._last.pop(key[0], None)
        if graph is not None:
            checked(self._cuda.cudaGraphLaunch(graph, self._stream))
            return
        # TensorRT prepares shapes in the first run after they change, which must not be recorded.
        if self._recording and last == key:
            self._record(context, key)
            return
        self._enqueue(context)
        self._last[key[0]] = key

    def forget(self) -> None:
        """Addresses have changed, which graphs hold; none of them is running."""
        for graph in self._made.values():
            self._cuda.cudaGraphExecDestroy(graph)
        self._made.clear()
        self._last.clear()

    def _record(self, context: Any, key: Key) -> None:
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
            self._recording = False
            _LOG.warning(
                "model '%s' is served without CUDA graphs: its engine's run cannot be recorded (%s)", self._model, why
            )
            self._enqueue(context)
            return
        if len(self._made) >= _MOST:
            cuda.cudaGraphExecDestroy(self._made.pop(next(iter(self._made))))
        self._made[key] = made
        checked(cuda.cudaGraphLaunch(made, self._stream))
