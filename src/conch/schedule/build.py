"""From a model's config to its scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from conch.backend.api import Instance, LoopInstance
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.batcher import QueueBatcher, QueuePolicy
from conch.schedule.queue import Later, Post, QueueScheduler, Runner
from conch.schedule.runner import LoopRunner, ThreadRunner


def build(
    config: ModelConfig, instances: Sequence[Instance], stats: ModelStats, post: Post, later: Later
) -> QueueScheduler:
    """The default scheduler, or the dynamic batcher where the (normalised) config asks for it, over `instances`."""
    scheduler = QueueScheduler(_batcher(config), stats, post, later)
    for number, instance in enumerate(instances):
        runner: Runner
        if isinstance(instance, LoopInstance):
            runner = LoopRunner(instance, scheduler.take, post)
        else:
            runner = ThreadRunner(instance, scheduler.take, f"{config.name}_{number}")
        scheduler.attach(runner)
    return scheduler


def _batcher(config: ModelConfig) -> QueueBatcher:
    """A model that does not batch has a queue policy all the same, where its config asks for dynamic batching."""
    if not config.HasField("dynamic_batching"):
        return QueueBatcher(max_rows=1)
    batching = config.dynamic_batching
    queue = batching.default_queue_policy
    policy = QueuePolicy(
        queue.max_queue_size, queue.default_timeout_microseconds * 1000, bool(queue.allow_timeout_override)
    )
    if config.max_batch_size < 1:
        return QueueBatcher(max_rows=1, policy=policy)
    delay = batching.max_queue_delay_microseconds * 1000
    return QueueBatcher(config.max_batch_size, batching.preferred_batch_size, delay, policy)
