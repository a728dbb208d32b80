"""How batches are cut into runs by what runs cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.portions import WORTH_NS, Portioned, Portions, cut
from conch.config.cut_batches import PARAMETER, may_cut
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from conch.types.request import InferRequest
from support.requests import make_request

COSTLY = 10 * WORTH_NS
ROWS = st.lists(st.integers(1, 5), min_size=1, max_size=12)


def work(portions: Portions, batches: int, rows: Sequence[int], row_ns: Callable[[int], float]) -> list[list[int]]:
    """So many batches are run as told, each run at its cost: the rows of the runs of each batch."""
    done = []
    for _ in range(batches):
        runs, begin = [], 0
        for count in portions.cut(rows):
            runs.append(sum(rows[begin : begin + count]))
            portions.seen(runs[-1], round(runs[-1] * row_ns(runs[-1])))
            begin += count
        done.append(runs)
    return done


@given(st.lists(ROWS, min_size=1, max_size=60), st.lists(st.integers(1, 20), min_size=70, max_size=70))
def test_every_request_is_in_one_run_in_its_order(batches: list[list[int]], costs: list[int]) -> None:
    """Whatever runs cost; and no request's rows are parted."""
    portions = Portions()
    for rows in batches:
        for _ in range(3):
            counts = portions.cut(rows)
            assert sum(counts) == len(rows)
            assert all(count > 0 for count in counts)
            begin = 0
            for count in counts:
                size = sum(rows[begin : begin + count])
                portions.seen(size, size * costs[size] * WORTH_NS)
                begin += count


@given(ROWS, st.integers(1, 8))
def test_runs_have_a_bound(rows: list[int], most: int) -> None:
    """No run has more rows, but for one request that has; and none could have taken the next request, too."""
    runs, begin = [], 0
    for count in cut(rows, most):
        runs.append(rows[begin : begin + count])
        begin += count
    assert [each for run in runs for each in run] == rows
    assert all(sum(run) <= most or len(run) == 1 for run in runs)
    assert all(sum(run) + after[0] > most for run, after in itertools.pairwise(runs))


def test_a_batch_that_costs_more_than_its_parts_is_cut() -> None:
    """Two rows at a time are cheapest: so it is run, but for a few that look whether it is still so."""
    shares = {1: 1.2, 2: 1.0, 4: 1.1, 8: 1.3}
    done = work(Portions(), 1000, [1] * 8, lambda rows: COSTLY * shares[rows])
    assert done[0] == [8]
    late = done[100:]
    assert sum(runs == [2, 2, 2, 2] for runs in late) > 0.95 * len(late)
    assert [8] in late


@given(ROWS.filter(lambda rows: sum(rows) > 1))
def test_a_batch_that_costs_what_its_parts_cost_stays_whole(rows: list[int]) -> None:
    late = work(Portions(), 600, rows, lambda _: COSTLY)[400:]
    assert sum(len(runs) == 1 for runs in late) > 0.9 * len(late)


def test_models_that_cost_little_are_never_cut() -> None:
    """Their runs are paid by the run, not by the row; nothing is even tried."""
    assert all(runs == [4] for runs in work(Portions(), 300, [1, 1, 1, 1], lambda _: WORTH_NS * 0.9))


def test_a_machine_whose_mood_has_changed_is_believed() -> None:
    """Small runs were cheap and are not any more: batches become whole again."""
    portions = Portions()
    work(portions, 100, [1] * 4, lambda rows: COSTLY * rows)
    assert portions.size(4) == 1
    late = work(portions, 3000, [1] * 4, lambda rows: COSTLY / rows)
    assert sum(runs == [4] for runs in late[-100:]) > 90


def test_sizes_that_cost_much_more_are_hardly_ever_looked_at() -> None:
    """Whoever is in such a batch waits for it: fewer than one in a hundred are."""
    late = work(Portions(), 4000, [1] * 8, lambda rows: COSTLY / rows)[200:]
    assert 0 < sum(runs != [8] for runs in late) < 0.01 * len(late)


def test_sizes_smaller_than_a_request_are_not_aimed_at() -> None:
    """Single rows are cheap, but requests of three cannot be run so: what their own runs cost decides."""
    costs = {1: 0.5, 3: 2.0, 6: 1.5, 12: 1.0}
    portions = Portions()
    work(portions, 20, [1], lambda _: COSTLY * costs[1])
    late = work(portions, 400, [3] * 4, lambda rows: COSTLY * costs[rows])[100:]
    assert sum(runs == [12] for runs in late) > 0.9 * len(late)


class Recorder:
    """An instance that writes down what it is given."""

    def __init__(self) -> None:
        self.runs: list[Sequence[InferRequest]] = []
        self.closed = False

    def run(self, batch: Sequence[InferRequest]) -> None:
        self.runs.append(batch)

    def close(self) -> None:
        self.closed = True


def test_portions_are_run_one_after_the_other() -> None:
    """By the clock that it is given, here one that makes each run cost its rows squared."""
    recorder = Recorder()
    now = [0]

    def clock() -> int:
        if recorder.runs:
            now[0] += COSTLY * len(recorder.runs[-1]) ** 2 // 2
        return now[0]

    portioned = Portioned(recorder, clock)
    batch = [make_request(id=str(number)) for number in range(4)]
    for _ in range(60):
        portioned.run(batch)
    assert recorder.runs[0] == batch
    assert [list(run) for run in recorder.runs[-4:]] == [[each] for each in batch]
    portioned.close()
    assert recorder.closed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: 4 dynamic_batching { }", True),
        ("max_batch_size: 4", False),
        ("dynamic_batching { }", False),
        ('max_batch_size: 4 dynamic_batching { } parameters { key: "P" value { string_value: "no" } }', False),
        ('max_batch_size: 4 dynamic_batching { } parameters { key: "P" value { string_value: "yes" } }', True),
    ],
)  # fmt: skip
def test_which_models_may_be_cut(text: str, expected: bool) -> None:
    assert may_cut(text_format.Parse(text.replace('"P"', f'"{PARAMETER}"'), ModelConfig())) is expected


def test_the_parameter_is_yes_or_no() -> None:
    config = ModelConfig(name="m")
    config.parameters[PARAMETER].string_value = "2"
    with pytest.raises(InferError, match=f"parameter '{PARAMETER}' of model 'm' is '2', expected yes or no"):
        may_cut(config)
