"""Weighted fair queueing as a model's config asks for it, by `parameters` of ours. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid

WEIGHTS: Final = "conch_fair_weights"
BY: Final = "conch_fair_by"
_PREFIX: Final = "conch_fair_"
_LEAST, _MOST = 0.001, 1_000_000.0
_EXAMPLE: Final = "such as 'gold=4,silver=2,*=1'"


@dataclass(frozen=True, slots=True)
class Fairness:
    """Tenants share a model by weight while more waits than it can do.

    `by` is the request parameter (in lower case; forwarded headers become parameters) that names the tenant.
    """

    by: str
    weights: Mapping[str, float]
    #: The weight of each tenant that `weights` does not name; None: all of those together are one tenant of weight 1.
    others: float | None


def fairness(config: ModelConfig) -> Fairness | None:
    """None where the config does not ask for it. Raises InferError (INVALID_ARG) for what cannot be meant."""
    given = {name: each.string_value for name, each in config.parameters.items() if name.startswith(_PREFIX)}
    if not given:
        return None
    for name in sorted(given):
        if name not in {WEIGHTS, BY}:
            raise invalid(
                f"unknown parameter '{name}' of model '{config.name}'", f"fair queueing has '{WEIGHTS}' and '{BY}'"
            )
    if WEIGHTS not in given:
        raise invalid(
            f"parameter '{BY}' of model '{config.name}' needs '{WEIGHTS}' beside it",
            f"'{WEIGHTS}' gives the shares of tenants, {_EXAMPLE}",
        )
    if config.HasField("sequence_batching") or config.HasField("ensemble_scheduling"):
        raise invalid(
            f"parameter '{WEIGHTS}' of model '{config.name}' has no meaning with its scheduler",
            "fair queueing is for models with dynamic_batching or without any scheduling choice",
        )
    by = given.get(BY, "tenant").strip().lower()
    if not by:
        raise invalid(
            f"parameter '{BY}' of model '{config.name}' is empty, expected the name of a request parameter",
            "leave it out for 'tenant'",
        )
    weights = _weights(config.name, given[WEIGHTS])
    others = weights.pop("*", None)
    return Fairness(by, weights, others)


def fair_weights_are_sound(config: ModelConfig) -> None:
    """A rule of `config.rules`."""
    fairness(config)


def _weights(model: str, text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for entry in text.split(","):
        name, equals, value = (part.strip() for part in entry.rpartition("="))
        if not equals or not name:
            raise _wrong(model, text, f"'{entry.strip()}' is no '<tenant>=<weight>'")
        if name in weights:
            raise _wrong(model, text, f"it names '{name}' twice")
        weights[name] = _weight(model, text, value)
    return weights


def _weight(model: str, text: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if not _LEAST <= weight <= _MOST:
        raise _wrong(model, text, f"'{value}' is no weight from {_LEAST:g} to {_MOST:.0f}")
    return weight


def _wrong(model: str, text: str, why: str) -> InferError:
    return invalid(
        f"parameter '{WEIGHTS}' of model '{model}' is '{text}': {why}",
        f"expected '<tenant>=<weight>' separated by commas, {_EXAMPLE}; '*' is each tenant that is not named",
    )
