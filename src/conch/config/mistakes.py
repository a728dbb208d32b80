"""What is wrong with a `config.pbtxt`, told to a person: protobuf's errors with what was found and how to fix it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from google.protobuf.text_format import ParseError

from conch.config.enums import Descriptor, allowed
from conch.pb.pool import POOL

_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Mistake:
    """`line` and `column` count from 1."""

    line: int
    column: int
    found: str
    hint: str


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the parser said, and the text before and after the place where it said so."""

    match: re.Match[str]
    before: str
    after: str

    @property
    def rest(self) -> str:
        """The word at the place, to be shown."""
        word = re.match(r"\s*([\w.+-]+|\"[^\"\n]*\"|'[^'\n]*'|\S)", self.after)
        return _quoted(word[1] if word else "")

    @property
    def trailing_comma(self) -> bool:
        return self.before.rstrip()[-1:] == "," and self.after.lstrip()[:1] == "]"


def explain(error: ParseError, text: str) -> Mistake:
    """The mistake behind `error`, which parsing `text` raised."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    lines = text.split("\n")
    current = lines[line - 1] if line <= len(lines) else ""
    said = _said(str(error), current)
    for pattern, answer in _ANSWERS:
        if (match := pattern.match(said)) is not None:
            before = "\n".join([*lines[: line - 1], current[: column - 1]])
            found, hint = answer(_Seen(match, before, current[column - 1 :]))
            return Mistake(line, column, _short(found), hint)
    return Mistake(line, column, _short(said), "")


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean 'a' or 'b'?`, or nothing when no name is near."""
    # Not at the top: a server with sound configs never needs it.
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name[:100], list(names), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(each) for each in near)}?" if near else ""


def enum_hint(name: str, enum: Descriptor) -> str:
    """What to write instead of the value `name`, which `enum` does not have."""
    # People leave the prefix away: FP32 for TYPE_FP32.
    short = [value for value in enum.values_by_name if value.endswith(f"_{name.upper()}")]
    near = f"did you mean '{short[0]}'?" if short else nearest(name.upper(), enum.values_by_name)
    return f"{near} use one of: {allowed(enum)}".strip()


def field_hint(name: str, message: Descriptor) -> str:
    """Where a field that `message` does not have may have been meant to be."""
    config = POOL.FindMessageTypeByName("inference.ModelConfig")
    if name in config.fields_by_name:
        return "it belongs to the top level: is a '}' missing before it?"
    homes = [
        field.name
        for field in config.fields
        if field.message_type is not None and name in field.message_type.fields_by_name
    ]
    if homes and message is config:
        return f"it belongs into {' or '.join(homes)}"
    if near := nearest(name.lower(), message.fields_by_name):
        return near
    return f"{message.name} has: {', '.join(message.fields_by_name)}"


def _said(text: str, current: str) -> str:
    """The parser's own words, without its position and its copy of the line."""
    said = re.sub(r"^\d+:\d+ : ", "", text, count=1)
    for echo in (f"'{current}': ", "'': "):
        if said.startswith(echo):
            return said[len(echo) :]
    return said


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _quoted(text: str) -> str:
    return f"'{text}'" if text else "the end of the line"


_Answer = Callable[[_Seen], tuple[str, str]]


def _plain(found: str, hint: str) -> _Answer:
    """An answer without a choice; `<rest>` stands for the word at the place, `<name>` for a group of the match."""

    def answer(seen: _Seen) -> tuple[str, str]:
        filled = [found, hint]
        for name, value in {"rest": seen.rest, **seen.match.groupdict()}.items():
            filled = [text.replace(f"<{name}>", value) for text in filled]
        return filled[0], filled[1]

    return answer


def _unknown_field(seen: _Seen) -> tuple[str, str]:
    message = POOL.FindMessageTypeByName(seen.match["message"])
    name = seen.match["name"]
    return f"unknown field '{name}' in {message.name}", field_hint(name, message)


def _unknown_enum(seen: _Seen) -> tuple[str, str]:
    enum = POOL.FindEnumTypeByName(seen.match["enum"])
    name = seen.match["name"]
    return f"unknown value {name} for {enum.name}", enum_hint(name, enum)


def _list_end(otherwise: _Answer) -> _Answer:
    """Protobuf does not know trailing commas: it misses the entry that the comma promises."""

    def answer(seen: _Seen) -> tuple[str, str]:
        if seen.trailing_comma:
            return "a comma before ']'", "remove the comma after the last entry of the list"
        return otherwise(seen)

    return answer


def _not_open(seen: _Seen) -> tuple[str, str]:
    name = re.search(r"(\w+)\s*:?\s*\[?\s*$", seen.before)
    field = name[1] if name else "field"
    if field == "value":
        return f"expected '{{', found {seen.rest}", 'write value { string_value: "..." }'
    return f"expected '{{', found {seen.rest}", f"{field} is a message: write {field} {{ ... }}"


def _not_a_name(seen: _Seen) -> tuple[str, str]:
    found = seen.match["found"]
    if found in {"}", ">"}:
        return f"'{found}' closes nothing", "remove it, or add the '{' that it should close"
    return f"expected the name of a field, found {seen.rest}", "write fields as name: value or name { ... }"


#: What protobuf's parser says -> what we say; the first match wins.
_ANSWERS: tuple[tuple[re.Pattern[str], _Answer], ...] = tuple(
    (re.compile(pattern, re.DOTALL), answer)
    for pattern, answer in (
        (r'Message type "(?P<message>[^"]+)" has no field named "(?P<name>[^"]*)"', _unknown_field),
        (r'Enum type "(?P<enum>[^"]+)" has no value (?:named|with number) (?P<name>.*)\.$', _unknown_enum),
        (
            r"Couldn't parse integer: ",
            _list_end(_plain("expected a whole number, found <rest>", "write a whole number without quotes")),
        ),
        (
            r"Couldn't parse float: ",
            _list_end(_plain("expected a number, found <rest>", "write a number, such as 0.5")),
        ),
        (r'Expected "\{"', _list_end(_not_open)),
        (
            r'Expected "(?P<closing>[}>])"',
            _plain("expected '<closing>', found the end of the text", "a bracket is not closed: add '<closing>'"),
        ),
        (
            r'Expected ":"',
            _plain("expected ':', found <rest>", "write a colon between a field's name and its value"),
        ),
        (
            r'Expected ","',
            _plain("expected ',' or ']', found <rest>", "separate the entries of a list with commas, end it with ']'"),
        ),
        (
            r"String missing ending quote",
            _plain("a text whose closing quote is missing", "close the quote on the same line"),
        ),
        (
            r"Expected string but found",
            _list_end(_plain("expected a text in quotes, found <rest>", 'write the value in quotes, such as "abc"')),
        ),
        (
            r'Expected "true" or "false"',
            _list_end(_plain("expected true or false, found <rest>", "write true or false, without quotes")),
        ),
        (r"Expected identifier or number, got (?P<found>.*)\.$", _not_a_name),
        (
            r"Value out of range: ",
            _plain("value out of range: <rest>", "the field holds a smaller range of numbers"),
        ),
        (
            r'Message type "[^"]+" should not have multiple "(?P<name>[^"]+)"',
            _plain("field '<name>' is specified more than once", "keep one of them"),
        ),
        (
            r'Field "(?P<name>[^"]+)" is specified along with field "(?P<other>[^"]+)"',
            _plain(
                "field '<name>' is specified along with field '<other>'",
                "only one of the two can be set: remove <name> or <other>",
            ),
        ),
        (
            r'Message type "[^"]+" does not have extensions',
            _plain("a name in brackets", "configs have no extensions: write the name of a field without brackets"),
        ),
        (
            r"(?:Couldn't parse string: )?'utf-8' codec",
            _plain("a text that is not valid UTF-8", "write characters themselves instead of escaped bytes"),
        ),
    )
)
