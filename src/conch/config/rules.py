"""Which model configs are refused, in Triton's words. Each rule is one function; `validate` applies them in order."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Final

from conch.config import batching_rules, ensemble_rules, sequence_rules, tensor_rules
from conch.config.autofill import PLATFORMS
from conch.config.memory import memory_wish_is_sound
from conch.config.model_metrics import metric_buckets_are_sound
from conch.config.padding import padding_is_sound
from conch.config.swap_gate import swap_gate_is_sound
from conch.config.traffic import traffic_is_sound
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

#: A rule raises InferError for a config that it refuses. The config is normalised and its backend settled.
Rule = Callable[[ModelConfig], None]


def validate(config: ModelConfig, *, check_io: bool) -> None:
    """Raise InferError for the first rule that `config` breaks: Triton's text, and in `hint` how to fix it.

    `check_io` false leaves out the rules of inputs and outputs, which a backend may still fill in. Instance groups
    have their rules in `instances`, for they depend on the machine.
    """
    for rule in MODEL_RULES:
        rule(config)
    if check_io:
        for rule in IO_RULES:
            rule(config)


def name_is_given(config: ModelConfig) -> None:
    if not config.name:
        raise invalid("model configuration must specify 'name'", 'write name: "..." into the config')


def backend_is_given(config: ModelConfig) -> None:
    if not config.backend and config.platform != "ensemble":
        raise invalid(
            f"unexpected platform type '{config.platform}' for {config.name}",
            f"set 'backend' instead of 'platform'; platforms are {', '.join([*PLATFORMS, 'ensemble'])}",
        )


def ensemble_has_no_backend(config: ModelConfig) -> None:
    if config.backend and config.platform == "ensemble":
        raise invalid(
            f"Ensemble model '{config.name}' must have platform type 'ensemble' and empty backend type",
            "remove 'backend'",
        )


def platform_suits_backend(config: ModelConfig) -> None:
    wanted = PLATFORMS.get(config.platform)
    foreign = bool(config.platform) and wanted is None and config.backend in PLATFORMS.values()
    if (wanted is not None and wanted != config.backend) or foreign:
        raise invalid(
            f"unexpected 'platform' and 'backend' pair, got:{config.platform}, {config.backend}",
            "remove 'platform': 'backend' alone is enough",
        )


def batch_size_is_not_negative(config: ModelConfig) -> None:
    if config.max_batch_size < 0:
        raise invalid(
            f"'max_batch_size' must be non-negative value for {config.name}", "use 0 for a model that does not batch"
        )


def model_file_stays_inside(config: ModelConfig) -> None:
    """Versions may share a file that lies beside them; other models and the machine have theirs for themselves."""
    name = config.default_model_filename
    path = posixpath.normpath(posixpath.join("version", name)) if name else ""
    if path.startswith(("/", "../")) or path in {".", ".."} or "\0" in path:
        raise invalid(
            f"default_model_filename {name!r} of model '{config.name}' is outside model directory",
            "put the file into the version folder and write its name alone",
        )


def cache_suits_scheduler(config: ModelConfig) -> None:
    if config.response_cache.enable and config.HasField("sequence_batching"):
        raise invalid(
            f"Response Cache does not currently support model {config.name} with sequence batching scheduler. "
            "Please disable the response cache.",
            "remove 'response_cache'",
        )


def cache_suits_transactions(config: ModelConfig) -> None:
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        raise invalid(
            f"Response Cache does not currently support model {config.name} with 'decoupled' transaction policy. "
            "Please disable the response cache.",
            "remove 'response_cache'",
        )


def metrics_are_complete(config: ModelConfig) -> None:
    hint = 'write metric_control { metric_identifier { family: "..." } histogram_options { buckets: [ ... ] } }'
    for control in config.model_metrics.metric_control:
        if not control.HasField("metric_identifier"):
            raise invalid("metric control must specify 'metric_identifier'", hint)
        if not control.metric_identifier.family:
            raise invalid("metric identifier must specify non-empty 'family'", hint)
        if not control.HasField("histogram_options"):
            raise invalid("metric control must specify 'histogram_options'", hint)
        if not control.histogram_options.buckets:
            raise invalid("histogram options must specify non-empty 'buckets'", hint)


MODEL_RULES: Final[tuple[Rule, ...]] = (
    name_is_given,
    backend_is_given,
    ensemble_has_no_backend,
    platform_suits_backend,
    batch_size_is_not_negative,
    model_file_stays_inside,
    *batching_rules.RULES,
    *sequence_rules.RULES,
    *ensemble_rules.RULES,
    cache_suits_scheduler,
    cache_suits_transactions,
    metrics_are_complete,
    metric_buckets_are_sound,
    memory_wish_is_sound,
    traffic_is_sound,
    swap_gate_is_sound,
)

IO_RULES: Final[tuple[Rule, ...]] = (*tensor_rules.RULES, padding_is_sound)
