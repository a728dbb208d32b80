"""What the operator can set about Python models, and which interpreter runs one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conch.backend.api import ModelFiles
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid, unsupported

_MIB = 1 << 20
_LOG = logging.getLogger("conch.backend")
#: A parameter of the model's config: how many coroutines of `execute` run side by side in one instance.
CONCURRENT = "MAX_CONCURRENT_EXECUTIONS"
_MOST_CONCURRENT = 4096
#: Settings that have an effect.
_KNOWN = frozenset({"shm-default-byte-size", "shm-growth-byte-size", "stub-timeout-seconds"})
#: Settings of Triton's that nothing needs here, and why.
_NEEDLESS = {
    "shm-region-prefix-name": "shared memory has no names here",
    "thread-pool-size": "calls of models to other models need no threads here",
}
#: Settings for all backends that concern the server.
_SERVER = frozenset({"backend-directory", "min-compute-capability", "default-max-batch-size", "auto-complete-config"})
#: Unknown settings that were warned of, with their values.
_warned: set[tuple[str, str]] = set()


@dataclass(frozen=True, slots=True)
class Settings:
    """`--backend-config=python,...`. Sizes are bytes, times seconds."""

    #: How much shared memory an instance starts with, for each direction.
    shm_default: int = _MIB
    #: Shared memory grows by multiples of this.
    shm_growth: int = _MIB
    #: How long loading `model.py` and `initialize` may take.
    start_timeout: float = 30.0


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
    _whole(settings, "thread-pool-size", 32)
    for name, value in settings.items():
        if name not in _KNOWN | _SERVER and (name, value) not in _warned:
            _warned.add((name, value))
            why = _NEEDLESS.get(
                name, "the Python backend knows no such setting, its own are " + ", ".join(sorted(_KNOWN))
            )
            _LOG.warning("--backend-config=python,%s=%s has no effect: %s", name, value, why)
    return Settings(default, growth, float(timeout))


def interpreter(config: ModelConfig, files: ModelFiles) -> str:
    """The Python that runs the model: this one, or that of the folder in EXECUTION_ENV_PATH."""
    if "EXECUTION_ENV_PATH" not in config.parameters:
        return sys.executable
    text = config.parameters["EXECUTION_ENV_PATH"].string_value
    path = Path(text.replace("$$TRITON_MODEL_DIRECTORY", str(files.directory)))
    if not path.is_absolute():
        path = files.directory / path
    if not path.exists():
        raise internal(
            f"Failed to get the canonical path for {text}.",
            f"the parameter EXECUTION_ENV_PATH of model '{config.name}' names nothing that exists ('{path}')",
        )
    python = path / "bin" / "python"
    if path.is_dir() and python.exists():
        return str(python)
    raise _no_environment(config.name, path)


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


def _no_environment(model: str, path: Path) -> InferError:
    return unsupported(
        f"model '{model}': EXECUTION_ENV_PATH must name a folder with bin/python (a virtual environment, or an "
        f"unpacked conda-pack archive) here, and '{path}' is none",
        f"unpack it (mkdir env && tar xf {path.name} -C env) and let EXECUTION_ENV_PATH name the folder",
    )


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
