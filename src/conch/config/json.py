"""Model configs as JSON: what the config calls answer and what a load request may bring."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from conch.config.enums import Descriptor
from conch.config.mistakes import enum_hint, field_hint
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, invalid

_INT64: Final = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
_INTEGER: Final = _INT64 | {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}
_FLOATING: Final = frozenset({FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE})
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

#: 64-bit integers are JSON numbers in these fields, and strings (the rule of protobuf) in all others. This is
#: Triton's model configuration extension.
_NUMBERS: Final = frozenset(
    f"inference.{name}"
    for name in (
        "ModelInput.dims",
        "ModelOutput.dims",
        "ModelTensorReshape.shape",
        "ModelVersionPolicy.Specific.versions",
        "ModelQueuePolicy.default_timeout_microseconds",
        "ModelDynamicBatching.max_queue_delay_microseconds",
        "ModelDynamicBatching.priority_levels",
        "ModelDynamicBatching.default_priority_level",
        "ModelSequenceBatching.max_sequence_idle_microseconds",
        "ModelSequenceBatching.StrategyDirect.max_queue_delay_microseconds",
        "ModelSequenceBatching.StrategyOldest.max_queue_delay_microseconds",
        "ModelSequenceBatching.State.dims",
        "ModelEnsembling.Step.model_version",
        "ModelWarmup.Input.dims",
    )
)


def to_json(config: ModelConfig) -> bytes:
    """The config as compact JSON: original field names, scalars and lists with their defaults, unset messages and
    unset members of a choice left out, enums by name."""
    return msgspec.json.encode(_to_object(config))


def parse_json(text: str | bytes) -> ModelConfig:
    """Read the config of a load request.

    Enum names in any case, field names in snake_case or lowerCamelCase, 64-bit integers as numbers or strings.
    Raises InferError (INVALID_ARG) `Invalid config override: <what is wrong>` and nothing else, whatever the text.
    """
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        hint = "give one JSON object, the fields of a model config"
        raise _refusal(f"not JSON: {str(error)[:200]}", hint) from None
    config = ModelConfig()
    _fill(config, data, "")
    return config


# --- out ---


def _to_object(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {}
    field: Descriptor
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if _is_map(field):
            kind = field.message_type.fields_by_name["value"]
            # Sorted: protobuf's own order changes from run to run.
            result[field.name] = {str(key): _to_value(kind, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_to_value(field, each) for each in value]
        else:
            result[field.name] = _to_value(field, value)
    return result


def _to_value(field: Descriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _to_object(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if field.cpp_type in _INT64:
        return value if field.full_name in _NUMBERS else str(value)
    if field.cpp_type in _FLOATING:
        return _to_number(field, value)
    return value


def _to_number(field: Descriptor, value: float) -> float | int | str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    # The shortest text that reads back as the same float: 0.3, not 0.30000001192092896.
    return float(str(np.float32(value))) if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else value


# --- in ---


def _refusal(found: str, hint: str = "") -> InferError:
    return invalid(f"Invalid config override: {found}", hint)


def _fill(message: Message, data: object, path: str) -> None:
    if not isinstance(data, dict):
        raise _refusal(f"{path.rstrip('.') or 'the config'}: expected an object, got {_kind(data)}")
    names = _names(message.DESCRIPTOR)
    seen: dict[str, str] = {}
    for key, value in data.items():
        field = names.get(key)
        if field is None:
            raise _refusal(f"no such field: '{path}{_short(key)}'", field_hint(key, message.DESCRIPTOR))
        choice = field.containing_oneof.name if field.containing_oneof is not None else field.name
        if value is None:
            continue
        if choice in seen:
            what = f"'{path}{seen[choice]}' and '{path}{key}'"
            raise _refusal(f"{what} cannot both be set", "keep one of them")
        seen[choice] = key
        _set(message, field, value, f"{path}{field.name}")


def _set(message: Message, field: Descriptor, value: object, path: str) -> None:
    if _is_map(field):
        _set_map(message, field, value, path)
    elif field.is_repeated:
        if not isinstance(value, list):
            raise _refusal(f"{path}: expected a list, got {_kind(value)}", f"write [ ... ] around the value of {path}")
        target = getattr(message, field.name)
        for index, each in enumerate(value):
            place = f"{path}[{index}]"
            if field.message_type is not None:
                _fill(target.add(), each, f"{place}.")
            else:
                _store(place, target.append, _scalar(field, each, place))
    elif field.message_type is not None:
        child = getattr(message, field.name)
        child.SetInParent()
        _fill(child, value, f"{path}.")
    else:
        scalar = _scalar(field, value, path)
        _store(path, lambda checked: setattr(message, field.name, checked), scalar)


def _set_map(message: Message, field: Descriptor, value: object, path: str) -> None:
    if not isinstance(value, dict):
        raise _refusal(f"{path}: expected an object, got {_kind(value)}")
    target = getattr(message, field.name)
    key_field, value_field = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
    for name, each in value.items():
        place = f"{path}['{_short(name)}']"
        key = _scalar(key_field, name, place)
        try:
            if value_field.message_type is not None:
                _fill(target[key], each, f"{place}.")
            else:
                target[key] = _scalar(value_field, each, place)
        except (ValueError, TypeError) as error:
            raise _refusal(f"{place}: {str(error)[:200]}") from None


def _store(path: str, put: Any, value: object) -> None:
    """protobuf checks ranges and encodings when a value is put in."""
    try:
        put(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise _refusal(f"{path}: {str(error)[:200]}") from None


def _scalar(field: Descriptor, value: object, path: str) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if isinstance(value, str):
            return value
        raise _refusal(f"{path}: expected a string, got {_kind(value)}", "write the value in quotes")
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        if isinstance(value, bool):
            return value
        raise _refusal(f"{path}: expected true or false, got {_kind(value)}")
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, value, path)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _refusal(f"{path}: expected a number, got {_kind(value)}")
    return _integer(value, path) if kind in _INTEGER else _float(value, path)


def _enum(field: Descriptor, value: object, path: str) -> int:
    enum = field.enum_type
    if isinstance(value, str):
        known = enum.values_by_name.get(value.upper())
        if known is not None:
            return int(known.number)
    elif isinstance(value, int) and not isinstance(value, bool) and value in enum.values_by_number:
        return value
    raise _refusal(f"{path}: unknown value {_short(repr(value))} for {enum.name}", enum_hint(str(value)[:100], enum))


def _integer(value: float | str, path: str) -> int:
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
    elif isinstance(value, int):
        return value
    elif len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    raise _refusal(f"{path}: expected a whole number, got {_short(repr(value))}")


def _float(value: float | str, path: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise _refusal(f"{path}: expected a number, got {_short(repr(value))}") from None


def _is_map(field: Descriptor) -> bool:
    return field.message_type is not None and field.is_repeated and field.message_type.GetOptions().map_entry


@functools.cache
def _names(message: Descriptor) -> Mapping[str, Descriptor]:
    return {name: field for field in message.fields for name in (field.name, field.json_name)}


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
