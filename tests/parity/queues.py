"""Queues: priority levels, queue policies, time-outs, the order of answers."""

from __future__ import annotations

import json
from pathlib import Path

from parity.cases import Case, post
from parity.models import write_python
from parity.schedules import CONFIG, MODEL, Await, Count, Hold, Look, Pause, Release, Schedule, Send

#: The scheduling part of each model's config. A time-out is long: the recorded server may take half a second to notice
#: that an instance is free, and a busy machine may take as long for each step.
MODELS = {
    "queue_plain": "",
    "queue_batches": "max_batch_size: 4 dynamic_batching { default_queue_policy { max_queue_size: 100 } }",
    "queue_levels": "max_batch_size: 2 dynamic_batching { priority_levels: 3 default_priority_level: 2 }",
    "queue_levels_alone": "dynamic_batching { priority_levels: 2 default_priority_level: 2 }",
    "queue_full": "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
    "queue_full_levels": """max_batch_size: 1 dynamic_batching {
        priority_levels: 3 default_priority_level: 3
        default_queue_policy { max_queue_size: 2 }
        priority_queue_policy { key: 1 value { max_queue_size: 1 } }
        priority_queue_policy { key: 2 value { } }
    }""",
    "queue_reject": "max_batch_size: 2 dynamic_batching { default_queue_policy { %s } }",
    "queue_reject_waiting": "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 9000000 "
    "default_queue_policy { %s } }",
    "queue_override": "max_batch_size: 2 dynamic_batching { default_queue_policy { "
    "default_timeout_microseconds: 5000000 allow_timeout_override: true } }",
    "queue_override_short": "max_batch_size: 2 dynamic_batching { default_queue_policy { "
    "allow_timeout_override: true %s } }",
    "queue_no_override": "max_batch_size: 2 dynamic_batching { default_queue_policy { "
    "default_timeout_microseconds: 5000000 } }",
    "queue_override_of_nothing": "max_batch_size: 2 dynamic_batching { default_queue_policy { "
    "allow_timeout_override: true } }",
    "queue_delay": "max_batch_size: 1 dynamic_batching { default_queue_policy { timeout_action: DELAY %s } }",
    "queue_delay_full": "max_batch_size: 1 dynamic_batching { default_queue_policy { timeout_action: DELAY %s "
    "max_queue_size: 2 } }",
    "queue_delay_levels": """max_batch_size: 1 dynamic_batching {
        priority_levels: 2 default_priority_level: 1
        priority_queue_policy { key: 1 value { timeout_action: DELAY %s } }
        priority_queue_policy { key: 2 value { %s } }
    }""",
    "queue_ordered": "max_batch_size: 1 dynamic_batching { preserve_ordering: true } "
    "instance_group [ { count: 2 kind: KIND_CPU } ]",
    "queue_unordered": "max_batch_size: 1 dynamic_batching { } instance_group [ { count: 2 kind: KIND_CPU } ]",
    "queue_ordered_full": "max_batch_size: 1 dynamic_batching { preserve_ordering: true default_queue_policy { "
    "max_queue_size: 1 } } instance_group [ { count: 2 kind: KIND_CPU } ]",
}
TIMEOUT = "default_timeout_microseconds: 5000000"


def write(root: Path, oracle: bool) -> None:
    for name, scheduling in MODELS.items():
        write_python(root / name, [1], MODEL, CONFIG + scheduling.replace("%s", TIMEOUT))


def levels(*priorities: int) -> tuple[Send, ...]:
    """Requests a, b, c ... with these priorities."""
    return tuple(Send(chr(ord("a") + n), priority=priority) for n, priority in enumerate(priorities))


def refused(name: str, batching: dict[str, object]) -> Case:
    """A load with a config that cannot be; the version that is there stays."""
    config = {
        "backend": "python",
        "max_batch_size": 4,
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": "Y", "data_type": "TYPE_INT32", "dims": [1]}],
        "dynamic_batching": batching,
    }
    path = "/v2/repository/models/queue_batches/load"
    return post(f"queue: config, {name}", path, {"parameters": {"config": json.dumps(config)}})


DELAY = {"timeout_action": "DELAY", "default_timeout_microseconds": 5}
FLAGS = ("--model-control-mode=explicit", "--load-model=*")

CONFIGS: tuple[Case, ...] = (
    refused("preferred size of nothing", {"preferred_batch_size": [4, 0]}),
    refused("preferred size below nothing", {"preferred_batch_size": [-1]}),
    refused("preferred size beyond the maximum", {"preferred_batch_size": [5]}),
    refused("no default level", {"priority_levels": 2}),
    refused("default level beyond the last", {"priority_levels": 2, "default_priority_level": 3}),
    refused(
        "policy of no level",
        {"priority_levels": 2, "default_priority_level": 1, "priority_queue_policy": {"3": {"max_queue_size": 1}}},
    ),
    refused(
        "policy of level 0",
        {"priority_levels": 2, "default_priority_level": 1, "priority_queue_policy": {"0": {"max_queue_size": 1}}},
    ),
    refused("order and levels", {"preserve_ordering": True, "priority_levels": 2, "default_priority_level": 1}),
    refused("order and DELAY", {"preserve_ordering": True, "default_queue_policy": DELAY}),
    refused(
        "order and DELAY in a level",
        {
            "preserve_ordering": True,
            "priority_levels": 1,
            "default_priority_level": 1,
            "priority_queue_policy": {"1": DELAY},
        },
    ),
    refused(
        "order and DELAY in a level that is none", {"preserve_ordering": True, "priority_queue_policy": {"1": DELAY}}
    ),
)

CASES: tuple[Case, ...] = (
    *CONFIGS,
    Schedule(
        "queue: no dynamic batching, priorities mean nothing",
        "queue_plain",
        (Hold(), *levels(9, 1, 0), Send("hurry", timeout_us=1000), Pause(0.1), Release()),
        batches=False,
    ),
    Schedule("queue: what waits makes batches", "queue_batches", (Hold(), *levels(0, 0, 0, 0, 0, 0), Release())),
    Schedule(
        "queue: rows make batches",
        "queue_batches",
        (
            Hold(),
            Send("a", rows=3),
            Send("b", rows=2),
            Send("c"),
            Send("d", rows=2),
            Send("e", rows=4),
            Release(),
            Count(),
        ),
    ),
    Schedule(
        "queue: levels, the highest first", "queue_levels", (Hold(), *levels(3, 2, 1, 3, 1, 2), Release(), Count())
    ),
    Schedule("queue: levels spill into lower ones", "queue_levels", (Hold(), *levels(3, 2, 1, 3), Release())),
    Schedule(
        "queue: priorities that are no level are the default", "queue_levels", (Hold(), *levels(3, 0, 4, 2), Release())
    ),
    Schedule(
        "queue: a priority beyond 32 bits", "queue_levels", (Hold(), *levels(3, (1 << 32) + 1, 1 << 40, 1), Release())
    ),
    Schedule(
        "queue: levels without a batch dimension",
        "queue_levels_alone",
        (Hold(), *levels(2, 0, 1, 2, 1), Release()),
        batches=False,
    ),
    Schedule("queue: full", "queue_full", (Hold(), *levels(0, 0, 0, 0), Release())),
    Schedule(
        "queue: full, each level by itself",
        "queue_full_levels",
        (Hold(), *levels(1, 1, 2, 2, 2, 3, 3, 3), Release(), Count()),
    ),
    Schedule(
        "queue: time-out while the instance is busy",
        "queue_reject",
        (Hold(), Send("late"), Await("late"), Send("in time"), Release(), Count()),
    ),
    Schedule("queue: time-out before the delay is over", "queue_reject_waiting", (Send("late"), Await("late"))),
    Schedule(
        "queue: override",
        "queue_override",
        (Hold(), Send("patient"), Send("hasty", timeout_us=200_000), Await("hasty"), Release()),
    ),
    Schedule(
        "queue: override longer than the default",
        "queue_override_short",
        (Hold(), Send("long", timeout_us=60_000_000), Await("long"), Release()),
    ),
    Schedule(
        "queue: override that is not allowed",
        "queue_no_override",
        (Hold(), Send("hasty", timeout_us=50_000), Pause(0.8), Release()),
    ),
    Schedule(
        "queue: override where there is no time-out",
        "queue_override_of_nothing",
        (Hold(), Send("hasty", timeout_us=50_000), Pause(0.8), Release()),
    ),
    Schedule(
        "queue: delayed behind those in time",
        "queue_delay",
        (Hold(), Send("a"), Send("b"), Pause(5.1), Send("c"), Send("d"), Release()),
    ),
    Schedule(
        "queue: delayed ones count for the size",
        "queue_delay_full",
        (Hold(), Send("a"), Send("b"), Pause(5.1), Send("c"), Release()),
    ),
    Schedule(
        "queue: delayed in one level, refused in another",
        "queue_delay_levels",
        (
            Hold(),
            Send("low", priority=2),
            Send("a"),
            Await("low"),
            # The time of the other, which came later, is over too.
            Pause(1.5),
            Send("b"),
            Send("low in time", priority=2),
            Release(),
            Count(),
        ),
    ),
    Schedule(
        "queue: answers out of order",
        "queue_unordered",
        (Hold(), Send("a", runs=True), Await("a"), Send("b", runs=True), Await("b"), Look(), Release()),
        outputs=("Y",),
    ),
    Schedule(
        "queue: answers in order",
        "queue_ordered",
        # Both: the threads that wait here may be late in either order.
        (Hold(), Send("a", runs=True), Send("b", runs=True), Look(), Release(), Await("b"), Await("a"), Look()),
        outputs=("Y",),
    ),
    Schedule(
        "queue: refusals overtake answers in order",
        "queue_ordered_full",
        (Hold(1), Hold(2), Send("a"), Send("b"), Look(), Release(2), Pause(0.2), Look(), Release(1)),
        outputs=("Y",),
    ),
)
