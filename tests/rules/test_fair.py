"""Weighted fair queueing: shares by weight while there is more to do than can be done, and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.config.fairness import Fairness, fairness
from conch.config.rules import validate
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.fair import FairLine
from conch.schedule.forming import Forming
from conch.schedule.levels import LevelBatcher
from conch.schedule.policy import QueuePolicy
from conch.types.error import InferError
from conch.types.request import InferRequest
from support.requests import make_form, make_request

THREE = Fairness("tenant", {"gold": 4.0, "silver": 2.0}, 1.0)


def ask(tenant: str, rows: int = 1, by: str = "tenant") -> InferRequest:
    return make_request(make_form(rows, parameters={by: tenant}), id=tenant)


def make_line(fair: Fairness = THREE, limit: int = 1024, **waiting: int) -> FairLine:
    line = FairLine(fair, limit)
    for tenant, count in waiting.items():
        for _ in range(count):
            line.append(ask(tenant))
    return line


def test_shares_are_by_weight() -> None:
    """Of seven requests four are gold's, two silver's and one anybody else's."""
    line = make_line(gold=70, silver=70, bronze=70)
    assert Counter(each.id for each in line.take(70)) == {"gold": 40, "silver": 20, "bronze": 10}


def test_who_waits_alone_has_everything() -> None:
    """A weight is a share of what is asked for, not a limit."""
    line = make_line(bronze=10)
    assert len(line.take(10)) == 10


def test_rows_count_and_not_requests() -> None:
    """Who sends large requests gets fewer of them."""
    line = FairLine(Fairness("tenant", {}, 1.0))
    for _ in range(100):
        line.append(ask("large", rows=8))
        line.append(ask("small"))
    rows: Counter[str] = Counter()
    for request in line.take(90):
        rows[request.id] += request.form.rows
    assert abs(rows["large"] - rows["small"]) <= 8


def test_who_was_idle_has_saved_up_nothing() -> None:
    """A tenant that comes later shares from now on, and does not catch up."""
    line = make_line(Fairness("tenant", {}, 1.0), old=100)
    line.take(50)
    for _ in range(50):
        line.append(ask("new"))
    assert Counter(each.id for each in line.take(20)) == {"old": 10, "new": 10}


def test_coming_and_going_gains_nothing() -> None:
    """A tenant that waits with one request at a time has its share and no more."""
    line = make_line(Fairness("tenant", {}, 1.0), steady=100)
    done: Counter[str] = Counter()
    line.append(ask("sly"))
    for _ in range(60):
        (request,) = line.take(1)
        done[request.id] += 1
        if request.id == "sly":
            line.append(ask("sly"))
    assert abs(done["sly"] - done["steady"]) <= 1


def test_requests_that_leave_unserved_cost_their_tenant_nothing() -> None:
    """What times out in the queue is not held against who sent it."""
    line = make_line(Fairness("tenant", {}, 1.0), other=100)
    lost = [ask("unlucky") for _ in range(50)]
    for request in lost:
        line.append(request)
    for request in lost:
        line.remove(request)
    for _ in range(50):
        line.append(ask("unlucky"))
    assert Counter(each.id for each in line.take(20)) == {"other": 10, "unlucky": 10}


def test_tenants_beyond_the_limit_share_a_queue() -> None:
    """Made-up names cost no memory, and take nothing from tenants that have a weight of their own."""
    line = make_line(Fairness("tenant", {"gold": 1.0}, 1.0), limit=4)
    for number in range(500):
        line.append(ask(f"made up {number}"))
    for _ in range(100):
        line.append(ask("gold"))
    assert line.tenants <= 5
    assert Counter(each.id for each in line.take(60))["gold"] >= 10


def test_idle_tenants_are_forgotten() -> None:
    """Names that come once do not pile up while others keep the queue busy."""
    line = make_line(Fairness("tenant", {}, 1.0), limit=8, steady=5000)
    for number in range(500):
        line.append(ask(f"guest {number}"))
        line.take(4)
        assert line.tenants <= 8


def test_without_a_star_the_others_are_one_tenant() -> None:
    """However many names they have."""
    line = FairLine(Fairness("tenant", {"gold": 1.0}, None))
    for number in range(100):
        line.append(ask(f"nobody {number}"))
        line.append(ask("gold"))
    assert Counter(each.id == "gold" for each in line.take(20)) == {True: 10, False: 10}


@pytest.mark.parametrize("spelled", ["x-tenant", "X-Tenant", "X-TENANT"])
def test_a_forwarded_header_names_the_tenant_however_it_is_spelled(spelled: str) -> None:
    """HTTP keeps the client's spelling, gRPC knows lower case alone."""
    line = FairLine(Fairness("x-tenant", {"gold": 9.0}, 1.0))
    for _ in range(20):
        line.append(ask("gold", by=spelled))
        line.append(ask("bronze", by=spelled))
    assert Counter(each.id for each in line.take(10))["gold"] == 9


def test_requests_that_name_no_tenant_are_one() -> None:
    """They share the weight of those that are not named."""
    line = FairLine(THREE)
    for _ in range(10):
        line.append(make_request(make_form(), id="none"))
        line.append(ask("silver"))
    assert Counter(each.id for each in line.take(9)) == {"none": 3, "silver": 6}


def test_levels_come_before_fairness() -> None:
    """Tenants share inside a level; a higher level still goes first, and batches mix tenants."""
    batcher = LevelBatcher(
        Forming(3), QueuePolicy(), levels=2, default=2, line=lambda: FairLine(Fairness("tenant", {"a": 2.0}, 1.0))
    )
    for tenant, priority in (("b", 2), ("b", 2), ("a", 2), ("a", 2), ("b", 1)):
        batcher.offer(make_request(make_form(priority=priority, parameters={"tenant": tenant}), id=tenant), 0)
    first = batcher.take(0).run
    assert (first[0].id, first[0].form.priority) == ("b", 1)
    assert Counter(each.id for each in first) == {"a": 1, "b": 2}


NAMES = ("a", "b", "c")


@settings(max_examples=200, deadline=None)
@given(
    weights=st.tuples(*[st.floats(0.25, 8)] * 3),
    rows=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 6)), min_size=50, max_size=120),
    batch=st.integers(1, 5),
)
def test_nobody_is_further_from_the_weights_than_a_request(
    weights: tuple[float, ...], rows: list[tuple[str, int]], batch: int
) -> None:
    """While two tenants have both something to do, the rows done over their weights differ by one request of each."""
    weight = dict(zip(NAMES, weights, strict=True))
    line = FairLine(Fairness("tenant", weight, None))
    left: Counter[str] = Counter()
    for tenant, count in rows:
        line.append(ask(tenant, count))
        left[tenant] += 1
    done = dict.fromkeys(NAMES, 0.0)
    most = 6
    while len(line):
        ahead = [each for each, _ in zip(line, range(batch), strict=False)]
        taken = line.take(min(batch, len(line)))
        assert taken == ahead, "what is shown is what is taken"
        for request in taken:
            done[request.id] += request.form.rows / weight[request.id]
            left[request.id] -= 1
        busy = [name for name in NAMES if left[name]]
        for one in busy:
            for other in busy:
                bound = most / weight[one] + most / weight[other]
                assert done[one] - done[other] <= bound + 1e-6


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_history_loses_nothing_and_starves_nobody(data: st.DataObject) -> None:
    """Each tenant's requests run in their order, each once, whatever leaves in between."""
    line = FairLine(Fairness("tenant", {"a": 5.0}, 1.0), limit=3)
    queues: dict[str, list[InferRequest]] = {}
    waiting = 0
    for _ in range(data.draw(st.integers(1, 60))):
        step = data.draw(st.sampled_from(["append", "append", "append", "take", "remove"]))
        if step == "append":
            request = ask(data.draw(st.sampled_from("abcdef")), data.draw(st.integers(1, 4)))
            line.append(request)
            queues.setdefault(request.id, []).append(request)
            waiting += 1
        elif step == "take" and waiting:
            count = data.draw(st.integers(1, waiting))
            for request in line.take(count):
                queues[request.id].remove(request)
            waiting -= count
        elif step == "remove" and waiting:
            request = data.draw(st.sampled_from([each for queue in queues.values() for each in queue]))
            assert request in line
            line.remove(request)
            queues[request.id].remove(request)
            waiting -= 1
        assert len(line) == waiting
        assert set(line) == {each for queue in queues.values() for each in queue}
    for request in line.take(waiting):
        assert queues[request.id].pop(0) is request
    assert line.tenants == 0, "an empty queue remembers nobody"


def config(**parameters: str) -> ModelConfig:
    made = ModelConfig(name="m", backend="python", max_batch_size=4)
    for name, value in parameters.items():
        made.parameters[name].string_value = value
    return made


def test_what_a_config_says() -> None:
    """Weights by tenant, the weight of all others, and the parameter that names a tenant."""
    wanted = Fairness("x-tenant", {"gold": 4.0, "a=b": 0.5}, 1.0)
    assert fairness(config(conch_fair_weights=" gold = 4, a=b=0.5,*=1", conch_fair_by="X-Tenant")) == wanted
    assert fairness(config(conch_fair_weights="gold=4")) == Fairness("tenant", {"gold": 4.0}, None)
    assert fairness(config(something="else")) is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"conch_fair_weights": "gold"}, "is 'gold': 'gold' is no '<tenant>=<weight>'"),
        ({"conch_fair_weights": ""}, "'' is no '<tenant>=<weight>'"),
        ({"conch_fair_weights": "gold=4,,b=1"}, "'' is no '<tenant>=<weight>'"),
        ({"conch_fair_weights": "=4"}, "'=4' is no '<tenant>=<weight>'"),
        ({"conch_fair_weights": "gold=x"}, "'x' is no weight from 0.001 to 1000000"),
        ({"conch_fair_weights": "gold=0"}, "'0' is no weight from 0.001 to 1000000"),
        ({"conch_fair_weights": "gold=-1"}, "'-1' is no weight from 0.001 to 1000000"),
        ({"conch_fair_weights": "gold=nan"}, "'nan' is no weight from 0.001 to 1000000"),
        ({"conch_fair_weights": "gold=inf"}, "'inf' is no weight from 0.001 to 1000000"),
        ({"conch_fair_weights": "gold=1,gold=2"}, "it names 'gold' twice"),
        ({"conch_fair_weights": "gold=1", "conch_fair_by": " "}, "is empty, expected the name of a request parameter"),
        ({"conch_fair_by": "tenant"}, "needs 'conch_fair_weights' beside it"),
        ({"conch_fair_weight": "gold=1"}, "unknown parameter 'conch_fair_weight' of model 'm'"),
    ],
)
def test_what_cannot_be_meant_is_refused(parameters: dict[str, str], message: str) -> None:
    """The load fails and says what was expected."""
    with pytest.raises(InferError) as refusal:
        validate(config(**parameters), check_io=False)
    assert message in refusal.value.message
    assert refusal.value.hint


def test_fairness_needs_a_queue_of_requests() -> None:
    """Sequences and ensembles have none."""
    made = config(conch_fair_weights="a=1")
    text_format.Merge("sequence_batching { direct { } }", made)
    with pytest.raises(InferError, match="has no meaning with its scheduler"):
        fairness(made)
