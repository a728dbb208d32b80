"""One mistake in the text of a config, and the edit that mends it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conch.check.finding import Edit
from conch.check.outline import Field, outline
from conch.check.writing import Writer, quoted
from conch.config.enums import Descriptor
from conch.pb.pool import POOL

#: Names of data types that other programs use.
_TYPES: Final = {
    "FLOAT": "FP32", "FLOAT32": "FP32", "SINGLE": "FP32", "DOUBLE": "FP64", "FLOAT64": "FP64", "HALF": "FP16",
    "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT": "INT32", "LONG": "INT64", "SHORT": "INT16", "BYTE": "UINT8",
    "CHAR": "UINT8", "BOOLEAN": "BOOL", "BYTES": "STRING", "STR": "STRING", "OBJECT": "STRING", "TEXT": "STRING",
}  # fmt: skip
_WORD: Final = re.compile(r"\"[^\"\n]*\"?|'[^'\n]*'?|[^\s{}<>\[\]:,;#]+|.", re.DOTALL)
_TRUE: Final = {"yes", "on", "true", "1"}
_FALSE: Final = {"no", "off", "false", "0"}


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the parser says is wrong: `found` and `hint` as in `config.mistakes`, at the character `offset`."""

    path: Path
    text: str
    offset: int
    found: str
    hint: str

    @property
    def word(self) -> str:
        """What stands there."""
        match = _WORD.match(self.text, self.offset)
        return match[0] if match else ""

    def put(self, text: str, length: int | None = None) -> list[Edit]:
        """`text` in place of the word, or of `length` characters."""
        return [Edit(self.path, self.offset, self.offset + (len(self.word) if length is None else length), text)]


def repair(wrong: Wrong) -> list[Edit]:
    """Empty where only a person can know what was meant."""
    for pattern, mend in _MENDS:
        if re.match(pattern, wrong.found):
            return mend(wrong)
    return []


def _field(wrong: Wrong) -> list[Edit]:
    named = re.findall(r"'([^']+)'", wrong.hint) if wrong.hint.startswith("did you mean") else []
    if named:
        return wrong.put(named[0]) if len(named) == 1 else []
    if wrong.hint.startswith("it belongs to the top level"):
        return _to_the_top(wrong)
    home = re.fullmatch(r"it belongs into (\w+)", wrong.hint)
    return _into(wrong, home[1]) if home else []


def _to_the_top(wrong: Wrong) -> list[Edit]:
    opened, closed = _brackets(wrong.text)
    if opened > closed:
        line = wrong.text.rfind("\n", 0, wrong.offset) + 1
        alone = not wrong.text[line : wrong.offset].strip()
        place = line if alone else wrong.offset
        missing = "] " if _open_list(wrong.text[:place]) else ""
        return [Edit(wrong.path, place, place, f"}} {missing}".rstrip() + ("\n" if alone else " "))]
    found = _at(wrong)
    if found is None:
        return []
    parent, field = found
    writer = Writer(wrong.path, wrong.text, outline(wrong.text))
    moved = wrong.text[field.whole.start : field.whole.end]
    return [*writer.remove(parent, field), writer.add(writer.root, moved)]


def _into(wrong: Wrong, home: str) -> list[Edit]:
    found = _at(wrong)
    if found is None:
        return []
    parent, field = found
    writer = Writer(wrong.path, wrong.text, outline(wrong.text))
    moved = wrong.text[field.whole.start : field.whole.end]
    there = writer.root.first(home)
    if there is not None and there.children is not None:
        return [*writer.remove(parent, field), writer.add(there, moved)]
    return [Edit(wrong.path, field.whole.start, field.whole.end, f"{home} {{ {moved} }}")]


def _enum(wrong: Wrong) -> list[Edit]:
    plain = wrong.word.strip("\"'")
    short = plain.upper().removeprefix("TYPE_")
    enum = re.search(r" for (\w+)", wrong.found)
    if enum is not None and enum[1] == "DataType" and short in _TYPES:
        return wrong.put(f"TYPE_{_TYPES[short]}")
    if plain != wrong.word and enum is not None and plain.upper() in _values(enum[1]):
        return wrong.put(plain.upper())
    if not wrong.hint.startswith("did you mean"):
        return []
    named = re.findall(r"'([^']+)'", wrong.hint.partition("?")[0])
    same = [name for name in named if name.endswith(f"_{plain.upper()}") or name == plain.upper()]
    named = same or named
    return wrong.put(named[0]) if len(named) == 1 else []


def _values(enum: str) -> set[str]:
    config: Descriptor = POOL.FindMessageTypeByName("inference.ModelConfig")
    file = config.file
    known = file.enum_types_by_name.get(enum)
    return {value.name for value in known.values} if known is not None else set()


def _comma(wrong: Wrong) -> list[Edit]:
    place = wrong.text.rfind(",", 0, wrong.offset)
    return [Edit(wrong.path, place, place + 1, "")] if place >= 0 else []


def _number(wrong: Wrong) -> list[Edit]:
    plain = wrong.word.strip("\"'")
    return wrong.put(plain) if plain != wrong.word and re.fullmatch(r"[+-]?\d+(\.\d+)?", plain) else []


def _text(wrong: Wrong) -> list[Edit]:
    curly = re.match(r"[“”„‟]([^“”\"\n]*)[“”\"]", wrong.text[wrong.offset :])
    if curly is not None:
        return wrong.put(quoted(curly[1]), len(curly[0]))
    return wrong.put(quoted(wrong.word)) if re.fullmatch(r"[\w.+/$-]+", wrong.word) else []


def _truth(wrong: Wrong) -> list[Edit]:
    plain = wrong.word.strip("\"'").lower()
    return wrong.put("true") if plain in _TRUE else wrong.put("false") if plain in _FALSE else []


def _colon(wrong: Wrong) -> list[Edit]:
    return wrong.put(":", 1) if wrong.word == "=" else wrong.put(": ", 0)


def _separator(wrong: Wrong) -> list[Edit]:
    before = len(wrong.text[: wrong.offset].rstrip())
    ended = not wrong.text[wrong.offset :].strip()
    return [Edit(wrong.path, before, before, "\n]" if ended else ",")]


def _end_quote(wrong: Wrong) -> list[Edit]:
    word = re.match(r"[\"'][\w./ $-]*", wrong.text[wrong.offset :])
    if word is None:
        return []
    length = len(word[0].rstrip())
    return [Edit(wrong.path, wrong.offset + length, wrong.offset + length, wrong.text[wrong.offset])]


def _end(wrong: Wrong) -> list[Edit]:
    end = len(wrong.text.rstrip())
    missing = "]" if _open_list(wrong.text) == "[" else "}"
    return [Edit(wrong.path, end, end, f"\n{missing}")]


def _nothing_closed(wrong: Wrong) -> list[Edit]:
    return wrong.put("", 1)


def _parameter(wrong: Wrong) -> list[Edit]:
    """`parameters { key: "a" value: "b" }`"""
    word = wrong.word
    if "value" not in wrong.hint.split("{", maxsplit=1)[0] or word in {"[", "<"}:
        return []
    colon = re.search(r":\s*$", wrong.text[: wrong.offset])
    start = colon.start() if colon else wrong.offset
    end = wrong.offset + len(word)
    return [Edit(wrong.path, start, end, f" {{ string_value: {quoted(word.strip(chr(34)))} }}")]


def _twice(wrong: Wrong) -> list[Edit]:
    root = outline(wrong.text)
    for parent in root.walk():
        for child in parent.children or ():
            if child.value.start <= wrong.offset < child.value.end and child.children is None:
                name = re.search(r"'(\w+)'", wrong.found)
                if name is None or child.name != name[1]:
                    continue
                if child.name == "key" and parent.name:
                    place = child.label.start
                    return [
                        Edit(wrong.path, _before(wrong.text, place), place, f" }}{_between(parent)}{parent.name} {{ ")
                    ]
                others = {each.text for each in parent.all(child.name)}
                return Writer(wrong.path, wrong.text, root).remove(parent, child) if len(others) == 1 else []
    return []


def _between(parent: Field) -> str:
    return " " if not parent.listed else ", "


def _before(text: str, place: int) -> int:
    """Where the blanks and commas before `place` begin."""
    return len(text[:place].rstrip(" \t\r\n,;"))


def _at(wrong: Wrong) -> tuple[Field, Field] | None:
    for parent in outline(wrong.text).walk():
        for child in parent.children or ():
            if child.label.start == wrong.offset:
                return parent, child
    return None


def _brackets(text: str) -> tuple[int, int]:
    bare = re.sub(r"\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", "", text)
    return bare.count("{"), bare.count("}")


def _open_list(text: str) -> str:
    """The bracket that would be left open last, once one brace is closed; empty for none."""
    bare = re.sub(r"\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", "", text)
    stack: list[str] = []
    for mark in re.findall(r"[{}\[\]]", bare):
        if mark in "{[":
            stack.append(mark)
        elif stack:
            stack.pop()
    return stack[-1] if stack and stack[-1] == "[" else ""


_MENDS: Final = (
    (r"unknown field ", _field),
    (r"unknown value ", _enum),
    (r"a comma before '\]'", _comma),
    (r"expected a (whole )?number", _number),
    (r"expected a text in quotes", _text),
    (r"expected true or false", _truth),
    (r"expected ':'", _colon),
    (r"expected ',' or '\]'", _separator),
    (r"a text whose closing quote is missing", _end_quote),
    (r"expected '}', found the end", _end),
    (r"'[}>]' closes nothing", _nothing_closed),
    (r"expected '\{'", _parameter),
    (r"field '\w+' is specified more than once", _twice),
)
