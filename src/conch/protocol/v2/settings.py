"""Log and trace settings on the wire: JSON and protobuf to changes, settings back (spec: protocol 1.14, 1.15). Pure.

Changes are a dict of fields of `LogOptions` or `TraceSetting`; only what the client named is in it. In trace changes
None means "clear: fall back".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from conch.config.server import LogOptions
from conch.observe.trace import TraceSetting
from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.head import boolean, text
from conch.protocol.v2.lenient import parse
from conch.types.error import InferError, internal, invalid, unavailable, unsupported
from conch.types.tensor import Buffer

Changes = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_BOOLS: Final = ("log_info", "log_warning", "log_error")
_FORMATS: Final = ("default", "ISO8601")
_UINT32: Final = 4_294_967_295
_INT32: Final = 2_147_483_647
#: Triton's parser forgives blanks before a number.
_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,40})")
#: Name on the wire -> (field, smallest, largest).
_NUMBERS: Final = {
    "trace_rate": ("rate", 0, _UINT32),
    "trace_count": ("count", -1, _INT32),
    "log_frequency": ("log_frequency", 0, _UINT32),
}
_LEVELS: Final = ("TIMESTAMPS", "TENSORS")


# ---- the log


def read_log(body: Buffer) -> Changes:
    """From a JSON body, which must be there. Raises InferError."""
    root = _members(body)
    if root.get("log_file") is not None:
        raise _fixed("log")
    changes: Changes = {}
    for name in _BOOLS:
        if root.get(name) is not None:
            changes[name.removeprefix("log_")] = boolean(root[name])
    level = root.get("log_verbose_level")
    if level is not None:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= _UINT32:
            raise internal("attempt to access JSON non-unsigned-integer as unsigned-integer")
        changes["verbose"] = level
    form = root.get("log_format")
    if form is not None:
        if text(form) not in _FORMATS:
            raise unavailable(f"invalid argument for --log_format, got: {form}")
        changes["format"] = form
    return changes


def read_log_message(message: pb.LogSettingsRequest) -> Changes:
    """Raises InferError."""
    settings = message.settings
    if "log_file" in settings:
        raise _fixed("log")
    changes: Changes = {}
    for name in _BOOLS:
        if name in settings:
            _expect(settings[name], "bool_param", f"expect boolean for '{name}'")
            changes[name.removeprefix("log_")] = settings[name].bool_param
    if "log_verbose_level" in settings:
        _expect(settings["log_verbose_level"], "uint32_param", "expect int32 for 'log_verbose_level'")
        changes["verbose"] = settings["log_verbose_level"].uint32_param
    if "log_format" in settings:
        _expect(settings["log_format"], "string_param", "expect string for 'log_format'")
        form = settings["log_format"].string_param
        if form not in _FORMATS:
            raise invalid(f"invalid argument for log_format, got: {form}")
        changes["format"] = form
    return changes


def write_log(options: LogOptions) -> bytes:
    return _encode(_log_fields(options))


def write_log_message(options: LogOptions) -> pb.LogSettingsResponse:
    answer = pb.LogSettingsResponse()
    for name, value in _log_fields(options).items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(answer.settings[name], kind, value)
    return answer


def _log_fields(options: LogOptions) -> dict[str, bool | int | str]:
    return {
        "log_file": options.file,
        "log_info": options.info,
        "log_warning": options.warning,
        "log_error": options.error,
        "log_verbose_level": options.verbose,
        "log_format": options.format,
    }


def _expect(value: Any, kind: str, refusal: str) -> None:
    if value.WhichOneof("parameter_choice") != kind:
        raise invalid(refusal)


# ---- traces


def read_trace(body: Buffer) -> Changes:
    """From a JSON body, which must be there. Raises InferError."""
    root = _members(body)
    if "trace_file" in root:
        raise _fixed("trace")
    changes: Changes = {}
    if "trace_level" in root:
        levels = root["trace_level"]
        if levels is None:
            changes["level"] = None
        elif not isinstance(levels, list):
            raise internal("attempt to access JSON non-array as array")
        else:
            _take_levels(changes, [text(each) for each in levels])
    for name in _NUMBERS:
        if name in root:
            value = root[name]
            _take_number(changes, name, None if value is None else text(value), "got:")
    return changes


def read_trace_message(message: pb.TraceSettingRequest) -> Changes:
    """Raises InferError."""
    settings = message.settings
    if "trace_file" in settings:
        raise _fixed("trace")
    changes: Changes = {}
    if "trace_level" in settings:
        levels = settings["trace_level"].value
        if levels:
            _take_levels(changes, levels)
        else:
            changes["level"] = None
    for name in _NUMBERS:
        if name in settings:
            values = settings[name].value
            if len(values) > 1:
                raise invalid(f"expect only 1 value for '{name}'")
            _take_number(changes, name, values[0] if values else None, "got: ")
    return changes


def write_trace(setting: TraceSetting) -> bytes:
    fields: dict[str, Any] = _trace_fields(setting)
    return _encode(fields)


def write_trace_message(setting: TraceSetting) -> pb.TraceSettingResponse:
    answer = pb.TraceSettingResponse()
    for name, value in _trace_fields(setting).items():
        answer.settings[name].value.extend([value] if isinstance(value, str) else value)
    return answer


def _trace_fields(setting: TraceSetting) -> dict[str, str | list[str]]:
    fields: dict[str, str | list[str]] = {
        "trace_level": list(setting.level) or ["OFF"],
        "trace_rate": str(setting.rate),
        "trace_count": str(setting.count),
    }
    options = setting.options
    if options.mode == "triton":
        fields |= {"log_frequency": str(setting.log_frequency), "trace_file": options.file}
    fields["trace_mode"] = options.mode
    if options.mode == "opentelemetry":
        fields["url"] = options.url
        if options.resource:
            fields["resource"] = ",".join(f"{key}={value}" for key, value in options.resource.items())
        fields["bsp_max_queue_size"] = str(options.bsp_max_queue_size)
        fields["bsp_schedule_delay"] = str(options.bsp_schedule_delay)
        fields["bsp_max_export_batch_size"] = str(options.bsp_max_export_batch_size)
    return fields


def _take_levels(changes: Changes, levels: Sequence[str]) -> None:
    """Levels that nobody knows are left out, as Triton does; with none left nothing changes."""
    if "OFF" in levels:
        if len(levels) > 1:
            raise invalid("Expect only one trace level 'OFF' is specified")
        changes["level"] = ()
        return
    known = tuple([level for level in _LEVELS if level in levels])
    if known:
        changes["level"] = known


def _take_number(changes: Changes, name: str, value: str | None, got: str) -> None:
    """`got` is how Triton's two protocols write one of the texts."""
    field, low, high = _NUMBERS[name]
    if value is None:
        changes[field] = None
        return
    match = _NUMBER.fullmatch(value)
    if match is None:
        raise invalid(f"Unable to parse '{name}', got: {value}")
    number = int(match[1])
    if number < low:
        if name == "trace_count":
            raise invalid(f"Unable to parse 'trace_count'. Expecting value >= -1, {got}{value}")
        raise invalid(f"Unable to parse '{name}', got: {value}")
    if number > high:
        raise invalid(f"Unable to parse '{name}', value is out of range [ {low}, {high} ], got: {value}")
    changes[field] = number


# ---- both


def _members(body: Buffer) -> Mapping[str, Any]:
    root = parse(body)
    return root if isinstance(root, dict) else {}


def _fixed(what: str) -> InferError:
    return unsupported(f"{what} file location can not be updated through network protocol")
