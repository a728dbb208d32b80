"""From a model's config to its scheduler."""

from __future__ import annotations

from collections.abc import Sequence

from conch.backend.api import Instance, LoopInstance
from conch.config.sequence_tensors import SequenceTensors
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.alarm import Later
from conch.schedule.drain import DrainRate
from conch.schedule.dynamic import may_refuse, queue_batcher
from conch.schedule.order import Order
from conch.schedule.queue import Post, QueueScheduler, Runner
from conch.schedule.runner import LoopRunner, ThreadRunner
from conch.schedule.sequence import SequenceScheduler
from conch.schedule.sequence_build import build_sequences


def build(
    config: ModelConfig,
    instances: Sequence[Instance],
    stats: ModelStats,
    post: Post,
    later: Later,
    sequences: SequenceTensors | None = None,
) -> QueueScheduler | SequenceScheduler:
    """The default scheduler, the dynamic or the sequence batcher, as the (normalised) config asks, over `instances`.

    `sequences` are the hidden tensors of a sequence model.
    """
    scheduler: QueueScheduler | SequenceScheduler
    if sequences is None:
        ordered = config.HasField("dynamic_batching") and config.dynamic_batching.preserve_ordering
        scheduler = QueueScheduler(
            queue_batcher(config),
            stats,
            post,
            later,
            order=Order() if ordered else None,
            rate=DrainRate() if may_refuse(config) else None,
        )
    else:
        scheduler = build_sequences(config, sequences, len(instances), stats, post, later)

    def drive(instance: Instance, name: str) -> Runner:
        if isinstance(instance, LoopInstance):
            return LoopRunner(instance, scheduler.take, post)
        return ThreadRunner(instance, scheduler.take, name)

    if isinstance(scheduler, QueueScheduler):
        scheduler.drive = drive
    for number, instance in enumerate(instances):
        name = f"{config.name}_{number}"
        if isinstance(scheduler, QueueScheduler):
            scheduler.hire(instance, name)
        else:
            scheduler.attach(drive(instance, name))
    return scheduler
