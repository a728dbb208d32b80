"""Enum values that no version of the messages defines: protobuf keeps them, a server must not."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

#: Protobuf's stubs know several classes of descriptors, none of them complete.
Descriptor = Any


class UnknownValue(NamedTuple):
    found: str
    hint: str


def allowed(enum: Descriptor) -> str:
    """The names to choose from; the first one, where it only stands for "not set", is left out."""
    return ", ".join(value.name for value in enum.values if not value.name.endswith("_INVALID"))


def unknown_value(message: Message, path: str = "") -> UnknownValue | None:
    """The first enum field below `message` whose number has no name; None when all are known."""
    field: Descriptor
    for field, value in message.ListFields():
        where = f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_ENUM:
            for number in value if field.is_repeated else (value,):
                if number not in field.enum_type.values_by_number:
                    found = f"unknown value {number} for {field.enum_type.name} in {where}"
                    return UnknownValue(found, f"use one of: {allowed(field.enum_type)}")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for place, child in _children(field, value, where):
                if (unknown := unknown_value(child, f"{place}.")) is not None:
                    return unknown
    return None


def _children(field: Descriptor, value: Any, where: str) -> list[tuple[str, Message]]:
    if not field.is_repeated:
        return [(where, value)]
    if field.message_type.GetOptions().map_entry:
        return [(f"{where}[{key}]", child) for key, child in value.items() if isinstance(child, Message)]
    return [(f"{where}[{index}]", child) for index, child in enumerate(value)]
