"""What the operator can set about Python models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from conch.config.environments import SETTINGS, EnvironmentOptions, environment_options
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

_MIB = 1 << 20
_LOG = logging.getLogger("conch.backend")
#: A parameter of the model's config: how many coroutines of `execute` run side by side in one instance.
CONCURRENT = "MAX_CONCURRENT_EXECUTIONS"
_MOST_CONCURRENT = 4096
SPIN = "call-spin-microseconds"
_LONGEST_SPIN = 10_000
#: Settings that have an effect.
_KNOWN = frozenset({"shm-default-byte-size", "shm-growth-byte-size", "stub-timeout-seconds", SPIN}) | SETTINGS
#: Settings of Triton's that nothing needs here, and why.
_NEEDLESS = {
    "shm-region-prefix-name": "shared memory has no names here",
    "thread-pool-size": "calls of models to other models need no threads here",
}
#: Settings for all backends that concern the server.
_SERVER = frozenset({"backend-directory", "min-compute-capability", "default-max-batch-size", "auto-complete-config"})
#: All that `read_settings` says something about; a Python-based backend may have others.
OWN = _KNOWN | _NEEDLESS.keys() | _SERVER
#: Unknown settings that were warned of, with their values.
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Settings:
    """`--backend-config=python,...`. Sizes are bytes, times seconds."""

    environments: EnvironmentOptions
    #: How much shared memory an instance starts with, for each direction.
    shm_default: int = _MIB
    #: Shared memory grows by multiples of this.
    shm_growth: int = _MIB
    #: How long loading `model.py` and `initialize` may take.
    start_timeout: float = 30.0
    #: After a call of a model to another one, nobody who takes part goes to sleep for so long, in microseconds.
    call_spin: int = 200


def read_settings(settings: Mapping[str, str]) -> Settings:
    """Raises InferError where a value is no whole number or too small."""
    default = _whole(settings, "shm-default-byte-size", _MIB)
    if default < _MIB:
        raise invalid(
            f"shm-default-byte-size={default} can't be smaller than 1 MiB ({_MIB} bytes)",
            f"use --backend-config=python,shm-default-byte-size={_MIB} or leave it out",
        )
    growth = _whole(settings, "shm-growth-byte-size", _MIB)
    timeout = _whole(settings, "stub-timeout-seconds", 30)
    for name in ("shm-growth-byte-size", "stub-timeout-seconds"):
        if name in settings and _whole(settings, name, 1) < 1:
            raise invalid(f"{name}={settings[name]} must be at least 1")
    spin = _whole(settings, SPIN, 200)
    if not 0 <= spin <= _LONGEST_SPIN:
        raise invalid(f"{SPIN}={spin} must be from 0 (off) to {_LONGEST_SPIN}")
    _whole(settings, "thread-pool-size", 32)
    for name, value in settings.items():
        if name not in _KNOWN | _SERVER and (name, value) not in _warned:
            _warned.add((name, value))
            why = _NEEDLESS.get(
                name, "the Python backend knows no such setting, its own are " + ", ".join(sorted(_KNOWN))
            )
            _LOG.warning("--backend-config=python,%s=%s has no effect: %s", name, value, why)
    return Settings(environment_options(settings), default, growth, float(timeout), spin)


def concurrency(config: ModelConfig) -> int:
    """How many batches of one instance may run side by side, where `execute` is a coroutine function and the model is
    not decoupled (those of decoupled models always may). Raises InferError."""
    if CONCURRENT not in config.parameters:
        return 1
    text = config.parameters[CONCURRENT].string_value
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_CONCURRENT:
        raise invalid(
            f"the parameter {CONCURRENT} of model '{config.name}' is '{text}', expected a number from 1 to "
            f"{_MOST_CONCURRENT}",
            f'write parameters {{ key: "{CONCURRENT}" value {{ string_value: "8" }} }}',
        )
    return int(text)


def _whole(settings: Mapping[str, str], name: str, default: int) -> int:
    text = settings.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise invalid(
            f"the Python backend's setting {name}={text} must be a whole number",
            f"write --backend-config=python,{name}={default}",
        ) from None
