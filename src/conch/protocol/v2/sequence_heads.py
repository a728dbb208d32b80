"""The heads of sequences' messages: they name the sequence, so there are many, and they are found by their bytes.

Messages that differ only in their id and tensors are known by a few templates, tried one after the other (`grpc`).
Where each of many live sequences has heads of its own, those would push each other out.
"""

from __future__ import annotations

from typing import Final, Generic, Protocol, Self, TypeVar

from conch.types.tensor import Buffer

#: Heads remembered per connection: those of 300 sequences and more.
_MOST: Final = 1024
#: Kinds of them that differ in more than the sequence.
_FAMILIES: Final = 64
#: A head longer than this is not looked for.
_LONGEST: Final = 16_384
_ID_TAG: Final = 0x1A


#: A parameter of that name in a message's map of parameters, up to its value.
_NAMED: Final = b"\x0a\x0bsequence_id\x12"
_PARAMETERS_TAG: Final = 0x22
_NUMBER_TAG: Final = 0x10
_TEXT_TAG: Final = 0x1A


class Head(Protocol):
    """Of `grpc.Template`, what is needed here."""

    prefix: bytes
    rest: bytes

    def of_sequence(self, name: int | str, rest: bytes) -> Self:
        """The same head for another sequence."""


Kind = TypeVar("Kind", bound=Head)
#: What precedes the sequence's name and what follows it, and whether it is a text.
_Around = tuple[bytes, bytes, bool]


class SequenceHeads(Generic[Kind]):
    """Templates by their `prefix`, by how many bytes follow their `rest`, and by their `rest`.

    A head that differs from a known one in the name of its sequence alone is made from that, not parsed.
    All are of one `generation` of the data plane.
    """

    __slots__ = ("_count", "_families", "_generation", "_known")

    def __init__(self) -> None:
        self._known: dict[bytes, dict[int, dict[bytes, Kind]]] = {}
        #: By prefix, size of the tail, and what is around the name: one head of those that are alike.
        self._families: dict[tuple[bytes, int, _Around], Kind] = {}
        self._count = 0
        self._generation = -1

    def add(self, head: Kind, tail: int, generation: int, name: int | str) -> None:
        """`tail` is the size of what follows `rest` in its messages, `name` the sequence's."""
        if generation != self._generation:
            self._families.clear()
        if generation != self._generation or self._count >= _MOST:
            self._known.clear()
            self._count = 0
            self._generation = generation
        self._known.setdefault(head.prefix, {}).setdefault(tail, {})[head.rest] = head
        self._count += 1
        found = _take_apart(head.rest)
        if found is not None and found[0] == name and len(self._families) < _FAMILIES:
            self._families[head.prefix, tail, found[1]] = head

    def find(self, message: Buffer, generation: int) -> tuple[Kind, str, int] | None:
        """The template of `message`, its id, and where its tail begins; None where it is not known."""
        if generation != self._generation:
            return None
        size = len(message)
        for prefix, tails in self._known.items():
            at = len(prefix)
            if message[:at] != prefix:
                continue
            name = ""
            if size > at + 1 and message[at] == _ID_TAG:
                length = message[at + 1]
                if length > 127:
                    # Such long ids are rare enough for the long way.
                    return None
                at += 2 + length
                try:
                    name = str(message[at - length : at], "utf-8")
                except UnicodeDecodeError:
                    return None
            for tail, rests in tails.items():
                end = size - tail
                if at < end <= at + _LONGEST:
                    rest = bytes(message[at:end])
                    head = rests.get(rest) or self._relative(prefix, tail, rest)
                    if head is not None:
                        return head, name, end
        return None

    def _relative(self, prefix: bytes, tail: int, rest: bytes) -> Kind | None:
        """The template of a sequence that is new, made from that of another one."""
        found = _take_apart(rest)
        if found is None:
            return None
        name, around = found
        relative = self._families.get((prefix, tail, around))
        if relative is None:
            return None
        head = relative.of_sequence(name, rest)
        # Not beyond the limit: `find` goes through what `add` would clear then.
        if self._count < _MOST:
            self._known[prefix][tail][rest] = head
            self._count += 1
        return head


def _take_apart(rest: bytes) -> tuple[int | str, _Around] | None:
    """The sequence's name and what is around it; None where it does not lie as protobuf's own encoders write it."""
    at = rest.find(_NAMED)
    value = at + len(_NAMED)
    if at < 2 or value + 2 >= len(rest) or rest.find(_NAMED, value) >= 0:
        return None
    size = rest[value]
    end = value + 1 + size
    if rest[at - 2] != _PARAMETERS_TAG or rest[at - 1] != end - at or size < 2 or end > len(rest) or end - at > 127:
        return None
    content = rest[value + 2 : end]
    name: int | str
    if rest[value + 1] == _NUMBER_TAG:
        if any(byte < 128 for byte in content[:-1]) or content[-1] > 127 or len(content) > 9:
            return None
        name = sum([(byte & 127) << 7 * place for place, byte in enumerate(content)])
    elif rest[value + 1] == _TEXT_TAG and content[0] == len(content) - 1:
        try:
            name = str(content[1:], "utf-8")
        except UnicodeDecodeError:
            return None
    else:
        return None
    # A name that is none leads another way.
    return (name, (rest[: at - 2], rest[end:], type(name) is str)) if name else None
