"""Which part of a region a request may use, for any offset and size."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conch.memory.regions import Regions
from conch.memory.system import COPY_LIMIT
from conch.types.error import InferError

SEGMENT = 2 * COPY_LIMIT + 7
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64), st.integers(-3, SEGMENT + 3), st.sampled_from([0, 1, COPY_LIMIT, COPY_LIMIT + 1])
)


@settings(max_examples=300, deadline=None)
@example(offset=0, size=SEGMENT, at=0, count=SEGMENT)
@example(offset=0, size=SEGMENT, at=0, count=0)
@example(offset=3, size=10, at=9, count=1)
@given(
    offset=st.integers(0, 2**64 - 1) | st.integers(0, SEGMENT), size=st.integers(0, SEGMENT), at=NUMBERS, count=NUMBERS
)
def test_a_request_sees_its_part_or_nothing(offset: int, size: int, at: int, count: int) -> None:
    """What can be read is what lies there, and written is what was written there; nothing beyond the region."""
    with tempfile.TemporaryDirectory() as folder:
        content = bytes(number * 7 % 256 for number in range(SEGMENT))
        path = Path(folder) / "key"
        path.write_bytes(content)
        regions = Regions(allowed=True, folder=folder)
        try:
            regions.register_system("r", "/key", offset, size)
        except InferError:
            assert size == 0 or offset + size > SEGMENT
            return
        fits = 0 <= at < size and count >= 0 and 0 < at + count <= size
        if not fits:
            wrong = "offset" if not 0 <= at < size else "offset + byte size"
            for use in (regions.read, regions.window):
                with pytest.raises(InferError) as caught:
                    use("r", at, count)
                assert caught.value.message == f"Invalid {wrong} for shared memory region: 'r'"
            return
        got = [regions.read("r", at, count, copy=copy) for copy in (False, True)]
        window = regions.window("r", at, count)
        begin = offset + at
        assert [bytes(each) for each in got] == [content[begin : begin + count]] * 2
        del got
        window.write(b"\xaa" * count)
        assert path.read_bytes() == content[:begin] + b"\xaa" * count + content[begin + count :]
