"""Runs batches on a forest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from conch.backend.batch import Batch, Shape
from conch.backend.forest.answers import Answer
from conch.backend.forest.engine import Engine
from conch.backend.forest.library import Explain
from conch.backend.forest.signature import SHAP_OUTPUT
from conch.observe.stats import ModelStats
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest
from conch.types.tensor import Buffer, from_numpy, to_numpy

Array = np.ndarray[Any, Any]


class ForestInstance:
    """One caller of a forest, which other instances share: engines are safe to call from many threads."""

    def __init__(
        self,
        spec: ModelSpec,
        features: int,
        number: type[np.floating[Any]],
        engine: Engine,
        answer: Answer,
        explain: Explain | None,
        stats: ModelStats,
    ) -> None:
        self._spec = spec
        self._features = features
        self._number = number
        self._engine = engine
        self._answer = answer
        self._explain = explain
        self._stats = stats
        self._rows = {each.name: _row(spec, each) for each in spec.outputs}

    def run(self, batch: Sequence[InferRequest]) -> None:
        """Execute and settle every request; what goes wrong goes to all of them. Never raises."""
        work = Batch(self._spec, batch, self._stats)
        if not work.requests:
            return
        try:
            x = self._gather(work)
            work.input_end()
            answers = self._answer(self._engine(x))
            explained = self._explain(x) if self._explain is not None and _wants(work, SHAP_OUTPUT) else None
            work.output_start()
            outputs = [
                self._output(spec, explained if spec.name == SHAP_OUTPUT else answers)
                for spec in self._spec.outputs
                if spec.name != SHAP_OUTPUT or explained is not None
            ]
        except InferError as error:
            work.fail(error)
        except Exception as error:  # noqa: BLE001  the libraries' errors have no common base
            work.fail(internal(f"model '{self._spec.name}': {error or type(error).__name__}"))
        else:
            work.settle(outputs)

    def close(self) -> None:
        self._explain = None

    def _gather(self, work: Batch) -> Array:
        spec = self._spec.inputs[0]
        shape, data = work.gather(0)
        array = to_numpy(spec.datatype, shape, data).reshape(-1, self._features)
        # A body may begin anywhere in a packet; vectorised kernels may not read elements across their alignment.
        return np.require(array, self._number, ("C", "A"))

    def _output(self, spec: TensorSpec, values: Array | None) -> tuple[TensorSpec, Shape, Buffer]:
        assert values is not None
        return spec, (len(values), *self._rows[spec.name]), from_numpy(spec.datatype, values)


def _row(spec: ModelSpec, output: TensorSpec) -> Shape:
    """The shape of one row in answers. As FIL has it, sizes of 1 are left out: one value a row is one dimension."""
    if output.reshape is not None:
        return output.reshape
    dims = output.dims if spec.max_batch_size > 0 or len(output.dims) == 1 else output.dims[1:]
    row = tuple([size for size in dims if size != 1])
    assert math.prod(row) > 0
    return row


def _wants(work: Batch, name: str) -> bool:
    return any(request.form.outputs is None or name in request.form.outputs for request in work.requests)
