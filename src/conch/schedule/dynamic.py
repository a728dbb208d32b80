"""From a model's config to the batcher of its queue: the default scheduler, or the dynamic batcher. Pure."""

from __future__ import annotations

import functools

from conch.config.fairness import Fairness, fairness
from conch.config.padding import padding_of
from conch.pb.model_config_pb2 import ModelConfig, ModelQueuePolicy
from conch.schedule.api import Batcher
from conch.schedule.batcher import QueueBatcher
from conch.schedule.buckets import BucketBatcher
from conch.schedule.fair import FairLine
from conch.schedule.forming import Forming
from conch.schedule.levels import LevelBatcher
from conch.schedule.line import Fifo
from conch.schedule.policy import QueuePolicy
from conch.types.error import invalid


def queue_batcher(config: ModelConfig) -> Batcher:
    """For a normalised config. Raises InferError where its wishes exclude each other."""
    fair = fairness(config)
    if not config.HasField("dynamic_batching"):
        return QueueBatcher(max_rows=1) if fair is None else _levels(config, Forming(1), fair)
    batching = config.dynamic_batching
    policies = _policies(config)
    # Levels, falling back, and times of their own need the batcher that keeps an eye on each request.
    special = batching.priority_levels or fair or any(each.delays or each.allow_override for each in policies)
    largest = config.max_batch_size
    # Without a batch dimension each request runs alone and nothing is waited for; queue policies hold all the same.
    preferred = batching.preferred_batch_size if largest > 0 else ()
    delay = batching.max_queue_delay_microseconds * 1000 if largest > 0 else 0
    padding = padding_of(config)
    if padding is not None:
        if batching.priority_levels or fair or any(each.delays for each in policies):
            raise invalid(
                f"model '{config.name}' pads its inputs, which does not go with priority levels, with the timeout "
                "action DELAY or with fair weights",
                "remove one or the other",
            )
        return BucketBatcher(largest, preferred, delay, policies[0], padding.max_waste)
    if special:
        return _levels(config, Forming(largest, preferred, delay), fair)
    return QueueBatcher(largest, preferred, delay, policies[0])


def may_refuse(config: ModelConfig) -> bool:
    """Whether a queue policy of the model may refuse a request."""
    return config.HasField("dynamic_batching") and any(each.bounded for each in _policies(config))


def default_policy(config: ModelConfig) -> QueuePolicy:
    """How long and how many requests may wait, where nothing is said of their level."""
    return _policy(config.dynamic_batching.default_queue_policy)


def _levels(config: ModelConfig, forming: Forming, fair: Fairness | None) -> LevelBatcher:
    batching = config.dynamic_batching
    return LevelBatcher(
        forming,
        _policy(batching.default_queue_policy),
        levels=batching.priority_levels,
        default=batching.default_priority_level if batching.priority_levels else 0,
        policies={level: _policy(each) for level, each in batching.priority_queue_policy.items()},
        line=Fifo if fair is None else functools.partial(FairLine, fair),
    )


def _policies(config: ModelConfig) -> list[QueuePolicy]:
    """The default policy and those of levels that there are."""
    batching = config.dynamic_batching
    own = batching.priority_queue_policy.values() if batching.priority_levels else ()
    return [_policy(batching.default_queue_policy), *map(_policy, own)]


def _policy(policy: ModelQueuePolicy) -> QueuePolicy:
    timeout = policy.default_timeout_microseconds * 1000
    return QueuePolicy(
        max_size=policy.max_queue_size,
        timeout_ns=timeout,
        # An override only ever shortens.
        allow_override=policy.allow_timeout_override and timeout > 0,
        delays=policy.timeout_action == ModelQueuePolicy.DELAY and timeout > 0,
    )
