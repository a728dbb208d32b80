"""What a config and the command line ask of TensorFlow, read into one plan. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conch.backend.complete import DEFAULT_MAX_BATCH_SIZE, default_max_batch_size
from conch.backend.python.environment import PATH
from conch.backend.python.settings import CONCURRENT, OWN
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

_INTRA, _INTER, _PER_SESSION = "TF_NUM_INTRA_THREADS", "TF_NUM_INTER_THREADS", "TF_USE_PER_SESSION_THREADS"
_TAG, _SIGNATURE, _INIT = "TF_GRAPH_TAG", "TF_SIGNATURE_DEF", "TF_INIT_OPS_FILE"
_SHARE: Final = "MAX_SESSION_SHARE_COUNT"
_TRUE: Final = frozenset({"true", "on", "1", "yes"})
_FALSE: Final = frozenset({"false", "off", "0", "no"})
_PARAMETERS: Final = frozenset({_INTRA, _INTER, _PER_SESSION, _TAG, _SIGNATURE, _INIT, _SHARE})
#: Those of every model that runs in a worker process.
_COMMON: Final = frozenset({PATH, CONCURRENT, "FORCE_CPU_ONLY_INPUT_TENSORS"})
_SETTINGS: Final = frozenset({"allow-soft-placement", "gpu-memory-fraction", "default-max-batch-size", "version"})


@dataclass(frozen=True, slots=True)
class TensorFlowPlan:
    """Thread counts: None for the instance's share of the CPUs."""

    tag: str = ""
    signature: str = ""
    intra: int | None = None
    inter: int | None = None
    per_session: bool = False
    init_ops: tuple[str, ...] = ()
    soft_placement: bool = True
    gpu_fraction: float = 0.0
    default_max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    #: What was accepted and has no effect; logged at load.
    warnings: tuple[str, ...] = ()


def plan_tensorflow(config: ModelConfig, settings: Mapping[str, str], folders: tuple[Path, ...]) -> TensorFlowPlan:
    """`folders` are where the file of TF_INIT_OPS_FILE may be. Raises InferError for what cannot be meant."""
    values = {name: each.string_value for name, each in config.parameters.items()}
    warnings = []
    if _SHARE in values:
        _whole(config, values, _SHARE)
        warnings.append(
            f"model '{config.name}': parameter '{_SHARE}' has no effect, each instance is a process with a session of "
            "its own"
        )
    warnings += [
        f"model '{config.name}': parameter '{name}' has no effect, the tensorflow backend knows "
        + ", ".join(sorted(_PARAMETERS))
        for name in sorted(values.keys() - _PARAMETERS - _COMMON)
        if not name.startswith("conch_")
    ]
    warnings += [
        f"--backend-config=tensorflow,{name}={settings[name]} has no effect, its settings are "
        + ", ".join(sorted(_SETTINGS))
        for name in sorted(settings.keys() - _SETTINGS - OWN)
    ]
    if settings.get("version", "2") != "2":
        raise invalid(
            f"backend setting 'version' of tensorflow is '{settings['version']}', expected 2",
            "models of TensorFlow 1 are run by TensorFlow 2 as well",
        )
    return TensorFlowPlan(
        values.get(_TAG, ""),
        values.get(_SIGNATURE, ""),
        _whole(config, values, _INTRA),
        _whole(config, values, _INTER),
        _flag(values.get(_PER_SESSION, "0"), f"parameter '{_PER_SESSION}' of model '{config.name}'"),
        _init_ops(config, values.get(_INIT, ""), folders),
        _flag(settings.get("allow-soft-placement", "true"), "backend setting 'allow-soft-placement'"),
        _fraction(settings.get("gpu-memory-fraction", "0")),
        default_max_batch_size("tensorflow", settings),
        tuple(warnings),
    )


def _whole(config: ModelConfig, values: Mapping[str, str], name: str) -> int | None:
    """0 is "not said", as in TensorFlow."""
    text = values.get(name)
    if text is None:
        return None
    # TensorFlow counts with 32 bits.
    if not text.isdecimal() or len(text) > 9:
        raise invalid(
            f"parameter '{name}' of model '{config.name}' is '{text}', expected a whole number >= 0",
            f'write parameters {{ key: "{name}" value {{ string_value: "2" }} }}',
        )
    return int(text) or None


def _flag(text: str, what: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise invalid(f"{what} is '{text}', expected true or false")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise invalid(f"backend setting 'gpu-memory-fraction' is '{text}', expected a number from 0 to 1")
    return value


def _init_ops(config: ModelConfig, name: str, folders: tuple[Path, ...]) -> tuple[str, ...]:
    if not name:
        return ()
    path = next((path for folder in folders if (path := folder / name).is_file()), None)
    if path is None:
        shown = " nor ".join([f"'{folder / name}'" for folder in folders])
        raise invalid(f"parameter '{_INIT}' of model '{config.name}' is '{name}', and there is neither {shown}")
    try:
        content = json.loads(path.read_bytes())
        names = content["init_ops"]
        if isinstance(names, list) and all(isinstance(each, str) for each in names):
            return tuple(names)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise invalid(
        f"'{path}' of model '{config.name}' does not list initialization operations",
        'it must be JSON such as {"init_ops": ["init"]}',
    )
