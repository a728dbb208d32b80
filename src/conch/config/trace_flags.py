"""What `--trace-config` and the older `--trace-*` flags say, put together (spec: operations 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conch.config.flag_values import FlagValueError, integer
from conch.config.server import TraceOptions

#: Triton's older names of TIMESTAMPS.
_ALIASES: Final = {"MIN": "TIMESTAMPS", "MAX": "TIMESTAMPS"}
_BSP: Final = ("bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size")
_COUNT: Final = integer(0)
_POSITIVE: Final = integer(1)


def trace_options(given: Mapping[str, Any], environ: Mapping[str, str]) -> TraceOptions:
    """`given`: `config`, a list of (mode, key, value), and the older flags by their names in `TraceOptions`.

    `--trace-config` wins over an older flag. OpenTelemetry's own variables (`OTEL_BSP_*`) in `environ` are defaults.
    Raises FlagValueError.
    """
    found: dict[str, Any] = {key: value for key, value in given.items() if key not in ("config", "level")}
    for key in _BSP:
        text = environ.get(f"OTEL_{key.upper()}")
        if text is not None:
            found[key] = _read(_POSITIVE, text, key)
    levels = list(given.get("level", ()))
    resource: dict[str, str] = {}
    for mode, key, value in given.get("config", ()):
        match mode, key:
            case "", "mode":
                found["mode"] = value
            case "", "level":
                levels.append(value.upper())
            case "", "rate" | "count":
                found[key] = int(value)
            case "triton", "file":
                found["file"] = value
            case "triton", "log-frequency":
                found["log_frequency"] = _read(_COUNT, value, f"{mode},{key}")
            case "opentelemetry", "url":
                found["url"] = value
            case "opentelemetry", "resource":
                name, _, worth = value.partition("=")
                resource[name] = worth
            case "opentelemetry", _ if key in _BSP:
                found[key] = _read(_POSITIVE, value, f"{mode},{key}")
            case _:
                where = f"{mode},{key}" if mode else key
                raise FlagValueError(
                    f"unknown trace setting '{where}', expected one of mode, level, rate, count, triton,file, "
                    "triton,log-frequency, opentelemetry,url, opentelemetry,resource, "
                    + ", ".join(f"opentelemetry,{name}" for name in _BSP)
                )
    return TraceOptions(**found, level=_level(levels), resource=resource)


def _level(levels: list[str]) -> tuple[str, ...]:
    """OFF anywhere turns all off."""
    named = {_ALIASES.get(level, level) for level in levels}
    return () if "OFF" in named else tuple(level for level in ("TIMESTAMPS", "TENSORS") if level in named)


def _read(reader: Any, text: str, part: str) -> int:
    try:
        number: int = reader(text)
    except FlagValueError as refused:
        raise FlagValueError(str(refused), part) from None
    return number
