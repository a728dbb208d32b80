"""From a model's config to its sequence scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable

from conch.config.sequence_tensors import SequenceTensors
from conch.config.spec import model_spec
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.alarm import Later
from conch.schedule.queue import Post
from conch.schedule.sequence import SequenceScheduler
from conch.schedule.sequence_batcher import SequenceBatcher
from conch.schedule.sequence_controls import Controls
from conch.schedule.sequence_life import Sequence
from conch.schedule.sequence_rows import Choice, Direct, Oldest


def build_sequences(
    config: ModelConfig,
    tensors: SequenceTensors,
    instances: int,
    stats: ModelStats,
    post: Post,
    later: Later,
    clock: Callable[[], int] = time.monotonic_ns,
) -> SequenceScheduler:
    """For so many instances, whose runners are to be attached; `config` is normalised."""
    batching = config.sequence_batching
    iterative = batching.iterative_sequence

    def key(sequence: Sequence) -> object:
        form = sequence.waiting[0].form
        if not states.open:
            return form.batch_key
        return form.batch_key, states.shapes(states.now(sequence, form.flags))

    batcher = SequenceBatcher(
        config.name,
        [_choice(config) for _ in range(instances)],
        batching.max_sequence_idle_microseconds * 1000,
        iterative=iterative,
        key=key,
    )
    # A request that is given back has no place in the order of answers.
    ordered = batching.oldest.preserve_ordering and not iterative
    scheduler = SequenceScheduler(batcher, stats, post, later, clock, ordered=ordered)
    scheduler.controls = Controls(model_spec(config, 0), tensors, scheduler.reschedule if iterative else None)
    states = scheduler.controls.states
    return scheduler


def _choice(config: ModelConfig) -> Choice:
    batching = config.sequence_batching
    rows = max(1, config.max_batch_size)
    if batching.HasField("oldest"):
        oldest = batching.oldest
        slots = oldest.max_candidate_sequences or rows
        return Oldest(slots, rows, oldest.preferred_batch_size, oldest.max_queue_delay_microseconds * 1000)
    direct = batching.direct
    return Direct(rows, direct.max_queue_delay_microseconds * 1000, direct.minimum_slot_utilization)
