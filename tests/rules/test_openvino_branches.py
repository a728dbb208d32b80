"""Which batch sizes an OpenVINO network has branches for."""

from __future__ import annotations

from conch.backend.openvino.branches import LEAST_WORK, MOST_BYTES, sizes_for


def test_sizes_where_they_pay() -> None:
    """Not beyond max_batch_size, not for short runs or dense layers alone, not for much to lay out."""
    assert sizes_for(8, 1000, LEAST_WORK) == (4, 3, 2, 1)
    assert sizes_for(2, 1000, LEAST_WORK) == (2, 1)
    assert sizes_for(8, 1000, LEAST_WORK - 1) == ()
    assert sizes_for(8, MOST_BYTES + 1, LEAST_WORK) == ()
