"""What a config asks of the forest backend, read into one plan. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conch.backend.forest.formats import FORMATS
from conch.config.forest_engine import PARAMETER
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid, unsupported

#: Parameters that choose how a GPU computes, and what they may be; they change no answer.
_GPU_ONLY: Final[Mapping[str, str]] = {
    "algo": "ALGO_AUTO, NAIVE, TREE_REORG, BATCH_TREE_REORG",
    "blocks_per_sm": "",
    "chunk_size": "",
    "layout": "depth_first, breadth_first, layered",
    "storage_type": "AUTO, DENSE, SPARSE, SPARSE8",
    "threads_per_tree": "",
    "transfer_threshold": "",
}
_OWN: Final = frozenset(
    {
        PARAMETER,
        "cpu_nthread",
        "is_classifier",
        "model_type",
        "output_class",
        "predict_proba",
        "threshold",
        "use_experimental_optimizations",
        "xgboost_allow_unknown_field",
    }
)
#: Settings of the command line that other rooms read.
_SETTINGS: Final = frozenset(
    {"auto-complete-config", "backend-directory", "default-max-batch-size", "min-compute-capability"}
)
ENGINES: Final = ("auto", "library", "onnxruntime", "treelite")


@dataclass(frozen=True, slots=True)
class ForestPlan:
    """One forest: every parameter of the config that acts."""

    #: None: whatever the version folder holds.
    model_type: str | None = None
    #: Whether answers are classes; None: as the model's own objective says.
    classifier: bool | None = None
    predict_proba: bool = False
    #: Above which score a binary classifier says 1.
    threshold: float = 0.5
    allow_unknown_field: bool = False
    #: Threads that one instance computes with; None: its share of the CPUs.
    threads: int | None = None
    engine: str = "auto"
    #: What was accepted and has no effect; logged at load.
    notes: tuple[str, ...] = ()


def plan_forest(config: ModelConfig, settings: Mapping[str, str]) -> ForestPlan:
    """`settings` are those of `--backend-config=fil,...`. Raises InferError for values out of range."""
    values = {key: each.string_value for key, each in config.parameters.items()}
    model_type = values.get("model_type")
    if model_type is not None and model_type not in FORMATS:
        raise unsupported(
            f"{model_type} not recognized as a valid serialization format.",
            f"parameter 'model_type' of model '{config.name}' is one of: {', '.join(FORMATS)}",
        )
    for key, choices in _GPU_ONLY.items():
        if key in values:
            _check_unused(config.name, key, values[key], choices)
    engine = values.get(PARAMETER, "auto")
    if engine not in ENGINES:
        raise invalid(
            f"parameter '{PARAMETER}' of model '{config.name}' is '{engine}', expected one of {', '.join(ENGINES)}",
            "leave it out for the quickest that agrees with treelite",
        )
    classifier = _flag(values, "is_classifier")
    # The name that the parameter had before release 25.09; upstream it wins, too, where both are given.
    older = _flag(values, "output_class")
    return ForestPlan(
        model_type,
        classifier if older is None else older,
        _flag(values, "predict_proba") or False,
        _number(config.name, values, "threshold", 0.5),
        _flag(values, "xgboost_allow_unknown_field") or False,
        _threads(config.name, values),
        engine,
        tuple(_notes(config.name, values, settings)),
    )


def _notes(model: str, values: Mapping[str, str], settings: Mapping[str, str]) -> list[str]:
    unused = sorted(values.keys() & _GPU_ONLY.keys())
    notes = []
    if unused:
        notes.append(f"model '{model}': {', '.join(unused)} steer GPUs and have no effect: forests run on CPUs here")
    if _flag(values, "use_experimental_optimizations") is False:
        notes.append(
            f"model '{model}': parameter 'use_experimental_optimizations' has no effect, "
            f"{PARAMETER} chooses how a forest is computed"
        )
    notes += [
        f"model '{model}': parameter '{key}' is not one that the fil backend knows, it has no effect"
        for key in sorted(values)
        if key not in _OWN and key not in _GPU_ONLY and not key.startswith("conch_")
    ]
    notes += [
        f"model '{model}': backend setting '{key}' is not one that the fil backend knows, it has no effect"
        for key in sorted(settings.keys() - _SETTINGS)
    ]
    return notes


def _flag(values: Mapping[str, str], key: str) -> bool | None:
    text = values.get(key)
    if text is None:
        return None
    if text not in ("true", "false"):
        raise internal(f"Expected 'true' or 'false' for parameter '{key}', got: '{text}'")
    return text == "true"


def _number(model: str, values: Mapping[str, str], key: str, default: float) -> float:
    if key not in values:
        return default
    try:
        number = float(values[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _bad(key, f"of model '{model}' is '{values[key]}', expected a number such as {default}")
    return number


def _threads(model: str, values: Mapping[str, str]) -> int | None:
    """`cpu_nthread`; numbers below 1 leave it to the server."""
    if "cpu_nthread" not in values:
        return None
    try:
        count = int(values["cpu_nthread"])
    except ValueError:
        raise _bad(
            "cpu_nthread", f"of model '{model}' is '{values['cpu_nthread']}', expected a whole number such as 2"
        ) from None
    return count if count > 0 else None


def _check_unused(model: str, key: str, text: str, choices: str) -> None:
    if choices and text not in choices.split(", "):
        raise _bad(key, f"of model '{model}' is '{text}', expected one of {choices}")
    if not choices and not text.lstrip("-").isdecimal():
        raise _bad(key, f"of model '{model}' is '{text}', expected a whole number")


def _bad(key: str, rest: str) -> InferError:
    return invalid(f"Bad input for parameter {key}", f"parameter '{key}' {rest}")
