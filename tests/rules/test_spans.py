"""The rules of memory that is lent in parts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conch.memory.spans import ALIGNMENT, Spans

SIZE = 16 * ALIGNMENT
#: Sizes to take, or which of what is taken to give back.
STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "give back"]), st.integers(0, 6 * ALIGNMENT)), min_size=1, max_size=60
)


@given(STEPS)
def test_what_is_lent_never_overlaps_and_all_of_it_comes_back(steps: list[tuple[str, int]]) -> None:
    """In whatever order parts are given back, they are aligned and apart, a fit is found where there is one (the
    first), and in the end there is one free piece again."""
    spans = Spans(SIZE + 7)
    lent: dict[int, int] = {}
    for what, number in steps:
        if what == "take":
            size = max(ALIGNMENT, number + -number % ALIGNMENT)
            fits = [begin for begin in range(0, SIZE - size + 1, ALIGNMENT) if _apart(begin, size, lent)]
            begin = spans.take(number)
            assert begin == (fits[0] if fits else None)
            if begin is not None:
                lent[begin] = size
        elif lent:
            begin = sorted(lent)[number % len(lent)]
            del lent[begin]
            spans.give_back(begin)
        assert spans.taken == sorted((begin, begin + size) for begin, size in lent.items())
        assert spans.free == SIZE - sum(lent.values())
    for begin in lent:
        spans.give_back(begin)
    assert spans.take(SIZE) == 0


def _apart(begin: int, size: int, lent: dict[int, int]) -> bool:
    return all(begin + size <= other or other + length <= begin for other, length in lent.items())


def test_less_than_one_part_is_nothing() -> None:
    """Memory smaller than the alignment cannot be lent."""
    assert Spans(ALIGNMENT - 1).take(1) is None
