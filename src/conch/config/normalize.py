"""Fills in what a model config leaves to Triton's defaults."""

from __future__ import annotations

from conch.pb.model_config_pb2 import ModelConfig

#: A sequence that sends nothing for this long is dropped, unless the config says otherwise.
_SEQUENCE_IDLE_US = 1_000_000


def normalize(config: ModelConfig) -> None:
    """Make `config` say what it leaves unsaid. Doing it again changes nothing.

    The instance groups are `instances`' matter: their defaults depend on the backend and the machine.
    """
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    largest = config.max_batch_size
    if config.HasField("dynamic_batching"):
        batching = config.dynamic_batching
        if not batching.preferred_batch_size and largest > 0:
            batching.preferred_batch_size.append(largest)
    if config.HasField("sequence_batching"):
        sequences = config.sequence_batching
        if sequences.max_sequence_idle_microseconds == 0:
            sequences.max_sequence_idle_microseconds = _SEQUENCE_IDLE_US
        if sequences.HasField("oldest") and not sequences.oldest.preferred_batch_size and largest > 0:
            sequences.oldest.preferred_batch_size.append(largest)
    if not config.HasField("ensemble_scheduling"):
        if not config.optimization.HasField("input_pinned_memory"):
            config.optimization.input_pinned_memory.enable = True
        if not config.optimization.HasField("output_pinned_memory"):
            config.optimization.output_pinned_memory.enable = True
