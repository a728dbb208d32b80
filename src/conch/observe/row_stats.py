"""Statistics of models whose batches have rows without a request (sequence batching, direct strategy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conch.observe.stats import ModelStats
from conch.types.request import InferRequest

#: The `model` of the forms that fill such rows.
EMPTY: Final = object()


class RowStats(ModelStats):
    """Rows without a request count for the size of a batch and for nothing else."""

    def executed(
        self,
        requests: Sequence[InferRequest],
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
        failed: Sequence[InferRequest] = (),
        empty: int = 0,
    ) -> None:
        asked = [request for request in requests if request.form.model is not EMPTY]
        lost = [request for request in failed if request.form.model is not EMPTY]
        empty += len(requests) + len(failed) - len(asked) - len(lost)
        super().executed(asked, start_ns, input_end_ns, output_start_ns, end_ns, lost, empty)
