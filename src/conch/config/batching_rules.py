"""Rules of dynamic batching: preferred sizes, priority levels, queue policies."""

from __future__ import annotations

from conch.config.fairness import fair_weights_are_sound
from conch.pb.model_config_pb2 import ModelConfig, ModelQueuePolicy
from conch.types.error import invalid


def preferred_sizes_fit(config: ModelConfig) -> None:
    for size in config.dynamic_batching.preferred_batch_size:
        if size <= 0:
            raise invalid(
                f"dynamic batching preferred size must be positive for {config.name}", "remove it from the list"
            )
        if size > config.max_batch_size:
            raise invalid(
                f"dynamic batching preferred size must be <= max batch size for {config.name}",
                f"raise max_batch_size from {config.max_batch_size} to {size}, or prefer smaller batches",
            )


def default_level_is_a_level(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    if batching.priority_levels and not 1 <= batching.default_priority_level <= batching.priority_levels:
        raise invalid(
            f"default priority level must be in range [1, {batching.priority_levels}] for {config.name}",
            "set default_priority_level: requests that name no priority get it",
        )


def policies_name_levels(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    for level in sorted(batching.priority_queue_policy):
        if batching.priority_levels and not 1 <= level <= batching.priority_levels:
            raise invalid(
                "priority queue policy must have priority level in range "
                f"[1, {batching.priority_levels}] for {config.name}",
                f"raise priority_levels, or remove the policy of level {level}",
            )


def order_allows_one_level(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    if batching.preserve_ordering and batching.priority_levels > 1:
        raise invalid(
            f"Only one priority level is allowed when 'preserve_ordering' is true for {config.name}",
            "remove 'priority_levels' or 'preserve_ordering'",
        )


def order_allows_no_delay(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    if batching.preserve_ordering and any(_delays(policy) for policy in policies):
        raise invalid(
            f"Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for {config.name}",
            "set timeout_action: REJECT, or remove 'preserve_ordering'",
        )


def _delays(policy: ModelQueuePolicy) -> bool:
    return policy.timeout_action == ModelQueuePolicy.DELAY and policy.default_timeout_microseconds != 0


RULES = (
    preferred_sizes_fit,
    default_level_is_a_level,
    policies_name_levels,
    order_allows_one_level,
    order_allows_no_delay,
    fair_weights_are_sound,
)
