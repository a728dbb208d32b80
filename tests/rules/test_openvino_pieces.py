"""How a batch is cut where a model is compiled for some batch sizes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conch.backend.openvino.pieces import LEAST_WORK, MOST_BYTES, SIZES, sizes_for, split

ROWS = st.lists(st.integers(0, 9), max_size=20)


@given(ROWS, st.integers(1, 16))
def test_every_request_is_in_one_piece(rows: list[int], most: int) -> None:
    """Pieces are the batch in its order; each has the rows it is compiled for, or is one request that fits none."""
    sizes = sizes_for(most, 0, LEAST_WORK)
    begin = 0
    for count, size in split(rows, sizes):
        piece = rows[begin : begin + count]
        begin += count
        assert len(piece) == count >= 1
        if size:
            assert size in sizes
            assert sum(piece) == size
        else:
            assert count == 1
            assert piece[0] not in sizes
    assert begin == len(rows)


@given(st.integers(0, 40))
def test_single_rows_fill_the_largest_sizes(count: int) -> None:
    """Requests of one row each never need a model for any size, and leave at most one piece of each smaller size."""
    found = [size for _, size in split([1] * count, SIZES)]
    assert sum(found) == count
    assert found == sorted(found, reverse=True)
    assert all(found.count(size) <= 1 for size in SIZES[1:])


def test_sizes_where_they_pay() -> None:
    """Not beyond max_batch_size, not for short runs or dense layers alone, not for many copies of much."""
    assert sizes_for(8, 1000, LEAST_WORK) == (4, 2, 1)
    assert sizes_for(3, 1000, LEAST_WORK) == (2, 1)
    assert sizes_for(8, 1000, LEAST_WORK - 1) == ()
    assert sizes_for(8, MOST_BYTES + 1, LEAST_WORK) == ()
