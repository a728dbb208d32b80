"""Where the fields of a text-format config stand: names and values with their places, comments left out. Pure.

It reads what protobuf's parser accepts; of anything else it makes the best it can, and never fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(
    r"""(?P<skip>[\s\ufeff]+|\#[^\n]*)
      | (?P<text>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)
      | (?P<mark>[{}<>\[\]:,;])
      | (?P<word>[^\s{}<>\[\]:,;"'#\ufeff]+)""",
    re.VERBOSE | re.DOTALL,
)
_OPEN: Final = {"{": "}", "<": ">"}
_DEEPEST: Final = 60
#: No 64-bit number has more digits.
_NUMBER: Final = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,19})")


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(slots=True)
class Field:
    """One value of a field. The entries of `dims: [ 1, 2 ]` are two fields of the same name and `whole`."""

    name: str
    #: The name itself.
    label: Span
    value: Span
    #: Name and value; for the entries of a list the whole list with its name.
    whole: Span
    #: Whether the value stands in `[ ... ]`.
    listed: bool = False
    #: A scalar without its quotes; empty for a message.
    text: str = ""
    #: None for a scalar.
    children: list[Field] | None = None

    def all(self, name: str) -> list[Field]:
        return [child for child in self.children or () if child.name == name]

    def first(self, *path: str) -> Field | None:
        """The field that is reached by these names, the first one of each."""
        here: Field | None = self
        for name in path:
            here = next(iter(here.all(name)), None) if here is not None else None
        return here

    @property
    def number(self) -> int | None:
        """A whole number, as protobuf writes them: decimal, 0x... or 0...; None for anything else."""
        if not _NUMBER.fullmatch(self.text):
            return None
        sign, digits = (-1, self.text[1:]) if self.text.startswith("-") else (1, self.text)
        base = 16 if digits[:2] in {"0x", "0X"} else 8 if digits[:1] == "0" else 10
        return sign * int(digits, base)

    def scalar(self, name: str) -> str:
        found = self.first(name)
        return found.text if found is not None else ""

    def walk(self) -> Iterator[Field]:
        yield self
        for child in self.children or ():
            yield from child.walk()


def outline(text: str) -> Field:
    """The whole text as a message without a name."""
    reader = _Reader([each for each in _tokens(text) if each.kind != "skip"], len(text))
    span = Span(0, len(text))
    return Field("", Span(0, 0), span, span, children=reader.fields("", 0))


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        yield _Token(match.lastgroup or "", match[0], match.start())


@dataclass(slots=True)
class _Reader:
    tokens: list[_Token]
    length: int
    at: int = field(default=0)

    def fields(self, closing: str, depth: int) -> list[Field]:
        """Fields up to the `closing` mark, which is left for the caller."""
        found: list[Field] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.text in {"}", ">"} and token.kind == "mark":
                if closing:
                    break
                self.at += 1
            elif token.kind == "word":
                self.at += 1
                found += self._values(token, depth)
            else:
                self.at += 1
        return found

    def _values(self, name: _Token, depth: int) -> list[Field]:
        if self._is(":"):
            self.at += 1
        if not self._is("["):
            one = self._value(name, depth)
            return [] if one is None else [one]
        self.at += 1
        found = []
        while self.at < len(self.tokens) and not self._is("]") and not self._is("}"):
            if self._is(",") or self._is(";"):
                self.at += 1
                continue
            before = self.at
            one = self._value(name, depth)
            if one is not None:
                found.append(one)
            elif self.at == before:
                self.at += 1
        end = self.tokens[self.at].end if self._is("]") else self._place()
        if self._is("]"):
            self.at += 1
        for each in found:
            each.listed = True
            each.whole = Span(name.start, end)
        return found

    def _value(self, name: _Token, depth: int) -> Field | None:
        if self.at >= len(self.tokens):
            return None
        token = self.tokens[self.at]
        label = Span(name.start, name.end)
        if token.kind == "mark":
            if token.text not in _OPEN or depth >= _DEEPEST:
                return None
            self.at += 1
            children = self.fields(_OPEN[token.text], depth + 1)
            end = self.tokens[self.at].end if self.at < len(self.tokens) else self.length
            self.at += 1
            return Field(name.text, label, Span(token.start, end), Span(name.start, end), children=children)
        last, text = token, ""
        # Texts that stand side by side are one.
        while self.at < len(self.tokens) and (each := self.tokens[self.at]).kind == token.kind:
            text += _plain(each.text)
            last = each
            self.at += 1
            if token.kind == "word":
                break
        return Field(name.text, label, Span(token.start, last.end), Span(name.start, last.end), text=text)

    def _is(self, mark: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at].text == mark

    def _place(self) -> int:
        return self.tokens[self.at].start if self.at < len(self.tokens) else self.length


def _plain(text: str) -> str:
    if text[:1] not in {'"', "'"}:
        return text
    inner = text[1:-1] if len(text) > 1 and text[-1] == text[0] else text[1:]
    return re.sub(r"\\(.)", r"\1", inner)
