"""The control plane: what a client may ask of the registry, checked, and passed on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Protocol

from conch.repository.local import check_name
from conch.repository.override import PREFIX, SWITCHES, inside
from conch.types.error import InferError, invalid, unavailable
from conch.types.model import IndexEntry


class Registry(Protocol):
    """What the control plane needs of the registry."""

    def index(self, ready_only: bool) -> list[IndexEntry]: ...
    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]: ...
    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]: ...
    def unload(self, name: str, unload_dependents: bool = False) -> Future[None]: ...


class Control:
    """Implements `service.api.ControlPlane`. `mode` is `--model-control-mode`."""

    def __init__(self, registry: Registry, mode: str) -> None:
        self._registry = registry
        self._mode = mode

    def index(self, ready_only: bool) -> list[IndexEntry]:
        return self._registry.index(ready_only)

    def load(self, name: str, parameters: Mapping[str, str | bytes]) -> Future[None]:
        try:
            self._check_mode()
            check_name(name)
            check_parameters(parameters)
        except InferError as error:
            return _failed(error)
        return self._registry.load(name, parameters)

    def load_group(self, models: Mapping[str, Mapping[str, str | bytes]]) -> Future[None]:
        try:
            self._check_mode()
            for name, parameters in models.items():
                check_name(name)
                check_parameters(parameters)
        except InferError as error:
            return _failed(error)
        return self._registry.load_group(models)

    def unload(self, name: str, unload_dependents: bool) -> Future[None]:
        try:
            self._check_mode()
            check_name(name)
        except InferError as error:
            return _failed(error)
        return self._registry.unload(name, unload_dependents)

    def _check_mode(self) -> None:
        if self._mode != "explicit":
            raise unavailable(
                "explicit model load / unload is not allowed if polling is enabled",
                "start the server with --model-control-mode=explicit",
            )


def check_parameters(parameters: Mapping[str, str | bytes]) -> None:
    """Whether a load's parameters can be understood and stay inside the model's folder. Raises InferError."""
    for key, value in parameters.items():
        if key == "config":
            if not isinstance(value, str):
                raise invalid("Load parameter 'config' must be a string: the model config as JSON")
        elif key in SWITCHES:
            if value not in {"true", "false"}:
                raise invalid(f"Load parameter '{key}' must be a boolean")
        elif not key.startswith(PREFIX):
            raise invalid(
                f"unrecognized load parameter '{key}'.", f"known are 'config', '{PREFIX}<path>', {', '.join(SWITCHES)}"
            )
    files = [key for key in parameters if key.startswith(PREFIX)]
    if files and "config" not in parameters:
        raise invalid("Load parameter 'config' must be specified for model file override")
    for key in files:
        inside(key.removeprefix(PREFIX))


def _failed(error: InferError) -> Future[None]:
    future: Future[None] = Future()
    future.set_exception(error)
    return future
