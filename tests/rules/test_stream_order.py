"""The order of a stream's answers, for every order in which models may finish."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conch.protocol.v2.stream_order import Line


@given(st.data())
def test_answers_leave_in_the_order_of_their_requests(draw: st.DataObject) -> None:
    """Whenever requests come and answers are made, what has left is a prefix of the requests, as long as it can be."""
    count = draw.draw(st.integers(0, 12))
    finish = draw.draw(st.permutations(range(count)))
    line: Line[int] = Line()
    turns, left, settled = [], [], set()
    for number in finish:
        # A request may join at any time before it is answered.
        while len(turns) <= number or (len(turns) < count and draw.draw(st.booleans())):
            turns.append(line.join())
        left += line.settle(turns[number], number)
        settled.add(number)
        first_missing = next((n for n in range(count) if n not in settled), count)
        assert left == list(range(first_missing))
        assert len(line) == len(turns) - len(left)
    assert left == list(range(count))
