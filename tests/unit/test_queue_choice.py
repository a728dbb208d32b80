"""Which batcher a config gets: the quick one wherever nothing asks for more."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from conch.config.normalize import normalize
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.batcher import QueueBatcher
from conch.schedule.dynamic import may_refuse, queue_batcher
from conch.schedule.levels import LevelBatcher
from conch.types.error import InferError
from support.requests import make_form, make_request

FAIR = 'parameters { key: "conch_fair_weights" value { string_value: "gold=2,*=1" } }'
LEVEL = "priority_queue_policy { key: 1 value { max_queue_size: 1 } }"
TIMEOUT = "default_timeout_microseconds: 5"


def config(text: str, max_batch_size: int = 4) -> ModelConfig:
    made = ModelConfig(name="m", backend="python", max_batch_size=max_batch_size)
    text_format.Merge(text, made)
    normalize(made)
    return made


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", QueueBatcher),
        ("dynamic_batching { }", QueueBatcher),
        ("dynamic_batching { preserve_ordering: true }", QueueBatcher),
        ("dynamic_batching { default_queue_policy { max_queue_size: 3 " + TIMEOUT + " } }", QueueBatcher),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY } }", QueueBatcher),
        ("dynamic_batching { default_queue_policy { allow_timeout_override: true } }", QueueBatcher),
        ("dynamic_batching { priority_queue_policy { key: 1 value { timeout_action: DELAY } } }", QueueBatcher),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY " + TIMEOUT + " } }", LevelBatcher),
        ("dynamic_batching { default_queue_policy { allow_timeout_override: true " + TIMEOUT + " } }", LevelBatcher),
        ("dynamic_batching { priority_levels: 2 default_priority_level: 1 }", LevelBatcher),
        ("dynamic_batching { } " + FAIR, LevelBatcher),
        (FAIR, LevelBatcher),
    ],
)
def test_who_asks_for_nothing_special_pays_nothing(text: str, wanted: type) -> None:
    """Levels, set-backs, times of their own and shares have the batcher that watches each request; others do not."""
    assert type(queue_batcher(config(text))) is wanted


def test_a_model_without_batch_dimension_has_its_policies() -> None:
    """Each request runs alone and at once, whatever the delay says; limits hold."""
    text = "dynamic_batching { max_queue_delay_microseconds: 1000000 default_queue_policy { max_queue_size: 2 } }"
    batcher = queue_batcher(config(text, max_batch_size=0))
    first = make_request(make_form())
    batcher.offer(first, 0)
    batcher.offer(make_request(make_form()), 0)
    with pytest.raises(InferError, match="Exceeds maximum queue size"):
        batcher.offer(make_request(make_form()), 0)
    assert batcher.take(1).run == [first]


@pytest.mark.parametrize("levels", [1 << 63, (1 << 64) - 1])
def test_any_number_of_levels_costs_nothing(levels: int) -> None:
    """Only levels in which something waits take memory."""
    batcher = queue_batcher(config(f"dynamic_batching {{ priority_levels: {levels} default_priority_level: 7 }}"))
    last, first = make_request(make_form(priority=levels)), make_request(make_form())
    batcher.offer(last, 0)
    batcher.offer(first, 0)
    assert batcher.take(0).run == [first, last]


@pytest.mark.parametrize(
    "text",
    [
        "dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
        "dynamic_batching { default_queue_policy { timeout_action: DELAY " + TIMEOUT + " } }",
        "dynamic_batching { } " + FAIR,
    ],
)
def test_padding_excludes_what_its_queue_cannot_do(text: str) -> None:
    """The load is refused rather than one of the two wishes forgotten."""
    pads = """
        input { name: "x" data_type: TYPE_INT32 dims: [ -1 ] }
        output { name: "y" data_type: TYPE_INT32 dims: [ -1 ] }
        parameters { key: "conch_padding" value { string_value: '{"inputs": {"x": {"axis": 1}}}' } } """
    with pytest.raises(InferError, match=r"does not go (together )?with"):
        queue_batcher(config(pads + text))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", False),
        ("dynamic_batching { }", False),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY " + TIMEOUT + " } }", False),
        ("dynamic_batching { default_queue_policy { " + TIMEOUT + " } }", True),
        ("dynamic_batching { default_queue_policy { max_queue_size: 1 } }", True),
        ("dynamic_batching { priority_levels: 1 default_priority_level: 1 " + LEVEL + " }", True),
        ("dynamic_batching { " + LEVEL + " }", False),
    ],
)
def test_rates_are_measured_where_requests_may_be_refused(text: str, wanted: bool) -> None:
    """For the others nobody needs to know when to come again."""
    assert may_refuse(config(text)) is wanted
