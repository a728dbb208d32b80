"""`model_metrics`: which buckets a model's histograms have on the metrics page (Triton's metrics.md, from 2.52)."""

from __future__ import annotations

import itertools
import math
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

#: The one family whose buckets can be chosen.
FIRST_RESPONSE: Final = "nv_inference_first_response_histogram_ms"


def first_response_ms(config: ModelConfig) -> tuple[float, ...] | None:
    """Upper ends of the buckets of first responses, in milliseconds; None where the config chooses none.

    Of a family named twice the last one counts, as in Triton. `config` has passed `metric_buckets_are_sound`.
    """
    chosen = [
        tuple(control.histogram_options.buckets)
        for control in config.model_metrics.metric_control
        if control.metric_identifier.family == FIRST_RESPONSE
    ]
    return chosen[-1] if chosen else None


def metric_buckets_are_sound(config: ModelConfig) -> None:
    """Raises InferError for ends that no histogram can have; what is said of other families makes none."""
    for control in config.model_metrics.metric_control:
        ends = list(control.histogram_options.buckets)
        ascending = all(before < end for before, end in itertools.pairwise(ends))
        if control.metric_identifier.family == FIRST_RESPONSE and not (ascending and all(map(math.isfinite, ends))):
            raise invalid(
                f"buckets of metric family '{FIRST_RESPONSE}' of model '{config.name}' must be finite numbers in "
                f"ascending order, got: {', '.join([str(end).removesuffix('.0') for end in ends])}",
                "write the upper ends in milliseconds from the smallest to the largest; +Inf is there without being "
                "named",
            )


def other_families(config: ModelConfig) -> bool:
    """Whether the config chooses buckets of a family that has none to choose."""
    return any(each.metric_identifier.family != FIRST_RESPONSE for each in config.model_metrics.metric_control)
