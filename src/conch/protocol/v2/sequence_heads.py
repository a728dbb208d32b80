"""The heads of sequences' messages: they name the sequence, so there are many, and they are found by their bytes.

Messages that differ only in their id and tensors are known by a few templates, tried one after the other (`grpc`).
Where each of many live sequences has heads of its own, those would push each other out.
"""

from __future__ import annotations

from typing import Final, Generic, Protocol, TypeVar

from conch.types.tensor import Buffer

#: Heads remembered per connection: those of 300 sequences and more.
_MOST: Final = 1024
#: A head longer than this is not looked for.
_LONGEST: Final = 16_384
_ID_TAG: Final = 0x1A


class Head(Protocol):
    """Of `grpc.Template`, what is needed here."""

    prefix: bytes
    rest: bytes


Kind = TypeVar("Kind", bound=Head)


class SequenceHeads(Generic[Kind]):
    """Templates by their `prefix`, by how many bytes follow their `rest`, and by their `rest`.

    All are of one `generation` of the data plane.
    """

    __slots__ = ("_count", "_generation", "_known")

    def __init__(self) -> None:
        self._known: dict[bytes, dict[int, dict[bytes, Kind]]] = {}
        self._count = 0
        self._generation = -1

    def add(self, head: Kind, tail: int, generation: int) -> None:
        """`tail` is the size of what follows `rest` in its messages."""
        if generation != self._generation or self._count >= _MOST:
            self._known.clear()
            self._count = 0
            self._generation = generation
        self._known.setdefault(head.prefix, {}).setdefault(tail, {})[head.rest] = head
        self._count += 1

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
                    head = rests.get(bytes(message[at:end]))
                    if head is not None:
                        return head, name, end
        return None
