"""What clients may change of the running server: the log and the traces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from conch.config.server import LogOptions
from conch.observe.log import Settings as LogSettings
from conch.observe.trace import Tracer, TraceSetting
from conch.types.error import InferError, invalid


class Settings:
    """Implements `service.api.SettingsPlane`. `ready` says whether a model is; it may raise InferError."""

    def __init__(self, log: LogSettings, tracer: Tracer, ready: Callable[[str, str], bool]) -> None:
        self._log = log
        self._tracer = tracer
        self._ready = ready

    def log(self) -> LogOptions:
        return self._log.options

    def change_log(self, changes: Mapping[str, Any]) -> LogOptions:
        if changes:
            self._log.apply(dataclasses.replace(self._log.options, **changes))
        return self._log.options

    def check_traced(self, model: str) -> None:
        if not model:
            return
        try:
            known = self._ready(model, "")
        except InferError:
            known = False
        if not known:
            raise invalid(f"Request for unknown model : {model}")

    def trace(self, model: str) -> TraceSetting:
        self.check_traced(model)
        return self._tracer.setting(model)

    def change_trace(self, model: str, changes: Mapping[str, Any]) -> TraceSetting:
        self.check_traced(model)
        return self._tracer.change(model, changes)
