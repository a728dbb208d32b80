"""Why a text is not JSON, in the words and with the offsets of Triton's parser.

Runs only after a text has been refused, and in Python: so it looks at short texts only. Of longer ones it tells what
the fast parser said.
"""

from __future__ import annotations

import re
from typing import Final

#: Nesting that Triton allows.
MAX_DEPTH: Final = 100
#: Longer texts are not walked again.
MAX_WALK: Final = 65536

_EMPTY = "The document is empty."
_TRAILING = "The document root must not be followed by other values."
_VALUE = "Invalid value."
_NAME = "Missing a name for object member."
_COLON = "Missing a colon after a name of object member."
_MEMBER = "Missing a comma or '}' after an object member."
_ELEMENT = "Missing a comma or ']' after an array element."
_QUOTE = "Missing a closing quotation mark in string."
_ESCAPE = "Invalid escape character in string."
_HEX = "Incorrect hex digit after \\u escape in string."
_SURROGATE = "The surrogate pair in string is invalid."
_ENCODING = "Invalid encoding in string."
_FRACTION = "Miss fraction part in number."
_EXPONENT = "Miss exponent in number."
_TOO_BIG = "Number too big to be stored in double."

_SPACE = re.compile(rb"[ \t\r\n]*")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
_NUMBERS = re.compile(rb"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[ \t\r\n]*,[ \t\r\n]*)+")
_WORDS = (b"true", b"false", b"null", b"NaN", b"Infinity", b"Inf")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_LOW_HALF = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HEX4 = re.compile(rb"[0-9a-fA-F]{4}")


class FaultError(Exception):
    """What is wrong (`reason`, in the parser's words) and where (`offset`, in bytes)."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at {offset}")
        self.reason = reason
        self.offset = offset


def find_fault(text: bytes) -> FaultError | None:
    """The first fault of `text`; None when it is JSON as Triton takes it (with NaN, Inf, Infinity), nested or not."""
    try:
        _Walk(text).document()
    except FaultError as fault:
        return fault
    return None


class _Walk:
    """One pass over a text, without recursion."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0

    def document(self) -> None:
        self.space()
        if self.at == len(self.text):
            raise FaultError(_EMPTY, self.at)
        closers: list[bytes] = []
        while True:
            opened = self.value(in_array=closers[-1:] == [b"]"])
            if opened:
                closers.append(opened)
                self.space()
                if self.text[self.at : self.at + 1] != opened:
                    if opened == b"}":
                        self.name()
                    continue
                self.at += 1
                closers.pop()
            if not self.after_value(closers):
                return

    def after_value(self, closers: list[bytes]) -> bool:
        """Past commas and closing brackets, to where the next value begins; False at the end of the document."""
        while closers:
            self.space()
            byte = self.text[self.at : self.at + 1]
            if byte == b",":
                self.at += 1
                self.space()
                if closers[-1] == b"}":
                    self.name()
                return True
            if byte != closers[-1]:
                raise FaultError(_MEMBER if closers[-1] == b"}" else _ELEMENT, self.at)
            self.at += 1
            closers.pop()
        self.space()
        if self.at != len(self.text):
            raise FaultError(_TRAILING, self.at)
        return False

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def name(self) -> None:
        if self.text[self.at : self.at + 1] != b'"':
            raise FaultError(_NAME, self.at)
        self.string()
        self.space()
        if self.text[self.at : self.at + 1] != b":":
            raise FaultError(_COLON, self.at)
        self.at += 1

    def value(self, *, in_array: bool) -> bytes:
        """Past one scalar (returns nothing), or past an opening bracket (returns what closes it)."""
        self.space()
        run = _NUMBERS.match(self.text, self.at) if in_array else None
        if run is not None:
            # A run of plain numbers in an array, in one step. The last one's comma stays for `after_value`.
            self.at = self.text.rindex(b",", self.at, run.end())
            return b""
        byte = self.text[self.at : self.at + 1]
        if byte in {b"{", b"["}:
            self.at += 1
            return b"}" if byte == b"{" else b"]"
        if byte == b'"':
            self.string()
        elif byte == b"-" or byte.isdigit():
            self.number()
        else:
            self.word(self.at)
        return b""

    def word(self, start: int) -> None:
        text = self.text
        for word in _WORDS:
            # After `Inf` an `i` must go on to `Infinity`.
            if text.startswith(word, start) and not (word == b"Inf" and text[start + 3 : start + 4] == b"i"):
                self.at = start + len(word)
                return
        raise FaultError(_VALUE, start + max([_common(word, text[start : start + 8]) for word in _WORDS]))

    def number(self) -> None:
        start = self.at
        match = _NUMBER.match(self.text, start)
        if match is None:
            self.word(start + 1)
            if self.text[start + 1 : start + 2] in b"tfn":
                raise FaultError(_VALUE, start + 1)
            return
        fraction, exponent = match[1], match[2]
        if fraction == b".":
            raise FaultError(_FRACTION, match.end(1))
        if exponent is not None and not exponent[-1:].isdigit():
            raise FaultError(_EXPONENT, match.end(2))
        if float(match[0]) in {float("inf"), float("-inf")}:
            raise FaultError(_TOO_BIG, start)
        self.at = match.end()

    def string(self) -> None:
        self.at += 1
        text = self.text
        while True:
            run = _PLAIN.match(text, self.at)
            if run is not None:
                self.at = run.end()
            byte = text[self.at : self.at + 1]
            if byte == b'"':
                self.at += 1
                return
            if byte in {b"", b"\0"}:
                raise FaultError(_QUOTE, self.at)
            if byte != b"\\":
                raise FaultError(_ESCAPE, self.at)
            self.escape()

    def escape(self) -> None:
        start, text = self.at, self.text
        kind = text[start + 1 : start + 2]
        if kind == b"u":
            if not _HEX4.match(text, start + 2):
                raise FaultError(_HEX, start)
            self.at = start + 6
            unit = int(text[start + 2 : start + 6], 16)
            if 0xD800 <= unit <= 0xDFFF:
                low = _LOW_HALF.match(text, start + 6)
                if unit >= 0xDC00 or low is None:
                    raise FaultError(_SURROGATE, start)
                self.at = start + 12
        elif kind and kind in b'"\\/bfnrt':
            self.at = start + 2
        else:
            raise FaultError(_ESCAPE, start)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes the two begin with in common."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
