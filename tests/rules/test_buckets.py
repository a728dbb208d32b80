"""The rules by which requests of padded models wait and meet: pure, with a clock that the test turns."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from conch.schedule.api import Turn
from conch.schedule.buckets import BucketBatcher
from conch.schedule.policy import QueuePolicy
from conch.types.padding import Bucket
from conch.types.request import InferRequest
from support.queue_histories import QueueHistory
from support.requests import make_form, make_request

SMALL, LARGE = Bucket((), (16,)), Bucket((), (64,))


def offer(batcher: BucketBatcher, key: object, at: int, rows: int = 1) -> InferRequest:
    request = make_request(make_form(rows, key), queued_ns=at)
    batcher.offer(request, at)
    return request


def test_requests_of_a_bucket_meet_across_others() -> None:
    """A request of another bucket between two of one bucket does not part them."""
    batcher = BucketBatcher(8)
    a, b, c = offer(batcher, SMALL, 1), offer(batcher, LARGE, 2), offer(batcher, SMALL, 3)
    assert [batcher.take(4).run, batcher.take(4).run] == [[a, c], [b]]


def test_the_bucket_that_waits_longest_is_served_first() -> None:
    """However much waits in one bucket, the oldest first request of any goes next."""
    batcher = BucketBatcher(2)
    many = [offer(batcher, SMALL, at) for at in (1, 2, 3, 5)]
    lone = offer(batcher, LARGE, 4)
    assert [batcher.take(9).run for _ in range(4)] == [many[:2], many[2:], [lone], []]


def test_a_full_bucket_does_not_wait_for_an_older_one() -> None:
    """While the oldest bucket waits for its delay, one that has reached its preferred size goes."""
    batcher = BucketBatcher(4, preferred=[2], delay_ns=100)
    old = offer(batcher, LARGE, 1)
    pair = [offer(batcher, SMALL, at) for at in (2, 3)]
    assert batcher.take(4).run == pair
    waiting = batcher.take(4)
    assert (waiting.run, waiting.ask_at) == ([], 101)
    assert batcher.take(101).run == [old]


def test_smaller_buckets_fill_a_batch_within_the_waste() -> None:
    """Requests of smaller buckets join a larger one's batch up to the limit of the waste, never the reverse."""
    batcher = BucketBatcher(8, max_waste=0.5)
    large = offer(batcher, LARGE, 1)
    small = [offer(batcher, SMALL, at) for at in range(2, 7)]
    # One large and two small: 64 + 2 * 16 of 3 * 64 elements are asked for, half is waste.
    assert batcher.take(9).run == [large, *small[:2]]
    late = offer(batcher, LARGE, 9)
    assert batcher.take(9).run == small[2:]
    assert batcher.take(9).run == [late]


def test_buckets_of_other_shapes_never_meet() -> None:
    """Merging needs equal keys in everything that is not padded."""
    batcher = BucketBatcher(8, max_waste=0.9)
    a, b = offer(batcher, Bucket((3,), (16,)), 1), offer(batcher, Bucket((5,), (16,)), 2)
    assert [batcher.take(9).run, batcher.take(9).run] == [[a], [b]]


class History(QueueHistory):
    """Any history: nothing lost, nothing twice, order in a bucket kept, the oldest head first, bounds kept."""

    @initialize(
        max_rows=st.integers(1, 8),
        preferred=st.lists(st.integers(1, 8), max_size=3),
        delay=st.sampled_from([0, 0, 3, 10]),
        max_size=st.sampled_from([0, 0, 1, 5]),
        timeout=st.sampled_from([0, 0, 4, 20]),
        waste=st.sampled_from([0.0, 0.3, 0.9]),
    )
    def begin(self, max_rows: int, preferred: list[int], delay: int, max_size: int, timeout: int, waste: float) -> None:
        self.max_rows, self.delay, self.waste = max_rows, delay, waste
        preferred = [size for size in preferred if size <= max_rows]
        policy = QueuePolicy(max_size, timeout, True)
        self.begin_with(BucketBatcher(max_rows, preferred, delay, policy, waste), max_size)

    @rule(
        target=QueueHistory.requests,
        rows=st.integers(1, 8),
        size=st.sampled_from([8, 16, 32]),
        rest=st.sampled_from(["a", "a", "b"]),
        hurry=st.integers(0, 9),
        leaves=st.sampled_from([0, 0, -3, 1, 15]),
    )
    def offer(self, rows: int, size: int, rest: str, hurry: int, leaves: int) -> InferRequest:
        # No two requests come at the same time, so that there is one oldest.
        self.now += 1
        form = make_form(min(rows, self.max_rows), Bucket(rest, (size,)), timeout_us=hurry)
        return self.put(make_request(form, queued_ns=self.now), leaves)

    def ran(self, turn: Turn) -> None:
        if not turn.run:
            assert not self.waiting or (self.delay and turn.ask_at > self.now), "who waits is told until when"
            return
        key = turn.run[0].form.batch_key
        assert isinstance(key, Bucket)
        oldest = self.waiting[0]
        if not self.delay or self.now - oldest.queued_ns >= self.delay:
            assert turn.run[0] is oldest, "no bucket starves"
        rows = sum(request.form.rows for request in turn.run)
        assert rows <= self.max_rows
        asked = 0
        for other in {request.form.batch_key for request in turn.run}:
            assert isinstance(other, Bucket)
            assert other.rest == key.rest
            assert other.sizes <= key.sizes
            ran = [request for request in turn.run if request.form.batch_key == other]
            line = [request for request in self.waiting if request.form.batch_key == other]
            assert ran == line[: len(ran)], "first come, first served in each bucket"
            asked += sum(request.form.rows for request in ran) * other.sizes[0]
        assert rows * key.sizes[0] - asked <= self.waste * rows * key.sizes[0] + 1e-9


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
