"""The local cache against a plain list of what was used last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conch.cache.api import Entry
from conch.cache.local import LocalCache
from conch.types.dtype import UINT8
from conch.types.response import InferResponse
from conch.types.tensor import Tensor

SIZE = 4 * Entry(InferResponse([Tensor("Y", UINT8, (100,), bytes(100))])).size


def entry(size: int) -> Entry:
    return Entry(InferResponse([Tensor("Y", UINT8, (size,), bytes(size))]))


lookups = st.tuples(st.just("lookup"), st.integers(0, 6), st.just(0))
inserts = st.tuples(st.just("insert"), st.integers(0, 6), st.integers(0, 2 * SIZE))


@given(st.lists(st.one_of(lookups, inserts), max_size=60))
def test_it_holds_what_was_used_last(steps: list[tuple[str, int, int]]) -> None:
    """Never more bytes than its size; what goes is what was not used for longest; the numbers are right."""
    cache = LocalCache(SIZE)
    model: list[tuple[bytes, Entry]] = []
    hits = misses = evictions = 0
    for step, number, size in steps:
        key = b"%d" % number
        at = next((i for i, (known, _) in enumerate(model) if known == key), None)
        if step == "lookup":
            found = cache.lookup(key)
            assert found is (None if at is None else model[at][1])
            if at is None:
                misses += 1
            else:
                hits += 1
                model.append(model.pop(at))
            continue
        made = entry(size)
        assert cache.insert(key, made) == (made.size <= SIZE)
        if made.size > SIZE:
            continue
        if at is not None:
            del model[at]
        while sum(each.size for _, each in model) + made.size > SIZE:
            del model[0]
            evictions += 1
        model.append((key, made))
        assert cache.stats.utilization == sum(each.size for _, each in model) / SIZE <= 1
        assert cache.stats.entries == len(model)
    stats = cache.stats
    assert (stats.hits, stats.misses, stats.evictions) == (hits, misses, evictions)


def test_entries_hold_nothing_of_others() -> None:
    """An entry has copies of what may be somebody else's memory."""
    memory = bytearray(b"1234")
    kept = Entry(InferResponse([Tensor("Y", UINT8, (2,), memoryview(memory)[1:3])]))
    memory[:] = b"abcd"
    assert bytes(kept.response.outputs[0].data) == b"23"
