"""Protobuf text format without its messages: nested fields in, dictionaries of lists out. Pure."""

from __future__ import annotations

import re
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"""\s+|\#[^\n]*|(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<word>[\w.+\-]+)|(?P<mark>[{}:<>\[\],;])"""
)


class TextError(Exception):
    """The text is not in this format; the text says where."""


def parse_fields(text: str) -> dict[str, list[Any]]:
    """Each field's values in order: str for strings, numbers and names, dict for messages. Raises TextError."""
    tokens: list[tuple[str, str, int]] = []
    position, line = 0, 1
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise TextError(f"line {line}: {text[position]!r} means nothing here")
        if found.lastgroup:
            tokens.append((found.lastgroup, found[0], line))
        position = found.end()
        line += found[0].count("\n")
    tokens.append(("mark", "", line))
    fields, end = _message(tokens, 0, "")
    assert end == len(tokens)
    return fields


def _message(tokens: list[tuple[str, str, int]], at: int, close: str) -> tuple[dict[str, list[Any]], int]:
    fields: dict[str, list[Any]] = {}
    while True:
        kind, word, line = tokens[at]
        if kind == "mark" and word == close:
            return fields, at + 1
        if kind == "mark" and word in (",", ";"):
            at += 1
            continue
        if kind != "word":
            raise TextError(f"line {line}: expected the name of a field, found {word or 'the end'!r}")
        values, at = _values(tokens, at + 1)
        fields.setdefault(word, []).extend(values)


def _values(tokens: list[tuple[str, str, int]], at: int) -> tuple[list[Any], int]:
    if tokens[at][1] == ":" and tokens[at][0] == "mark":
        at += 1
    kind, word, line = tokens[at]
    if kind == "mark" and word in ("{", "<"):
        fields, at = _message(tokens, at + 1, "}" if word == "{" else ">")
        return [fields], at
    if kind == "mark" and word == "[":
        values: list[Any] = []
        at += 1
        while tokens[at][1] != "]" or tokens[at][0] != "mark":
            if tokens[at][1] == "," and tokens[at][0] == "mark":
                at += 1
                continue
            found, at = _values(tokens, at)
            values += found
        return values, at + 1
    if kind == "word":
        return [word], at + 1
    if kind == "string":
        text = ""
        while tokens[at][0] == "string":
            text += re.sub(r"\\(.)", r"\1", tokens[at][1][1:-1])
            at += 1
        return [text], at
    raise TextError(f"line {line}: expected a value, found {word or 'the end'!r}")
