"""What the operator can set about Python models, and which interpreter runs one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conch.backend.api import ModelFiles
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid, unsupported

_MIB = 1 << 20


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
    # An own thread pool serves nothing here: each worker answers one batch at a time.
    _whole(settings, "thread-pool-size", 32)
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
