"""Header blocks: HPACK decoding behind a cache, and the rules for what a request's header list may hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Generic, Never, TypeVar, cast

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from conch.transport.http2_frames import END_HEADERS, PADDED, WITH_PRIORITY, ConnectionFault, ErrorCode
from conch.transport.http2_limits import Limits

Header = tuple[bytes, bytes]
Reusable = TypeVar("Reusable")
Single = TypeVar("Single")

#: Fields that only have a meaning between two HTTP/1.1 hops (RFC 9113 8.2.2).
_HOP: Final = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
_PSEUDO: Final = {b":method", b":scheme", b":path", b":authority"}
#: RFC 9113 8.2.1, tightened to RFC 9110's token.
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00\r\n]")
#: RFC 9113 8.2.1 forbids blanks around every value; the usual gRPC client sends them in metadata and Triton takes them.
_BAD_PSEUDO: Final = re.compile(rb"[\x00\r\n]|\A[ \t]|[ \t]\Z")
_CACHED_BLOCKS: Final = 256


class BlockAssembly:
    """Puts a header block together from HEADERS and CONTINUATION frames. Pure."""

    __slots__ = ("_limits", "_parts", "_size", "flags", "stream")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        #: The stream whose block is incomplete; 0 when none is.
        self.stream = 0
        #: Those of the HEADERS frame.
        self.flags = 0
        self._parts: list[bytes] = []
        self._size = 0

    def start(self, flags: int, number: int, payload: bytes) -> bytes | None:
        """A HEADERS frame. The block, if that was all of it. Raises ConnectionFault."""
        if number == 0 or not number & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {number}")
        start, stop = 0, len(payload)
        if flags & PADDED:
            if stop == 0:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded HEADERS frame without its pad length")
            start, stop = 1, stop - payload[0]
        if flags & WITH_PRIORITY:
            start += 5
        if start > len(payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a HEADERS frame is too short for its flags")
        if start > stop:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than the frame")
        self.stream, self.flags = number, flags
        self._parts, self._size = [], 0
        return self._add(flags, payload[start:stop])

    def more(self, flags: int, payload: bytes) -> bytes | None:
        """A CONTINUATION frame of the same stream."""
        if not self.stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block to continue")
        return self._add(flags, payload)

    def _add(self, flags: int, part: bytes) -> bytes | None:
        self._parts.append(part)
        self._size += len(part)
        limits = self._limits
        if self._size > limits.max_header_block or len(self._parts) > limits.max_continuations + 1:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header block is too large or in too many pieces")
        if not flags & END_HEADERS:
            return None
        block = b"".join(self._parts)
        self.stream, self._parts = 0, []
        return block


class HeaderBlocks(Generic[Reusable, Single]):
    """Decodes one connection's header blocks and remembers what was made of them.

    A block that left the dynamic table as it was decodes to the same list until the table changes; so what `make` made
    of it is kept, and a client that sends the same headers again costs one look-up.
    """

    __slots__ = ("_decoder", "_make", "_max_list", "_single", "made", "others")

    def __init__(self, make: Callable[[list[Header]], Reusable | Single], single: type[Single], max_list: int) -> None:
        """What `make` gives is found in `made`, or in `others` when it is a `single`."""
        # Above what we advertise a request is refused by itself; only at four times that the decoder gives up, which
        # costs the connection, because its table is then unknown.
        self._decoder = Decoder(max_header_list_size=4 * max_list)
        self._make = make
        self._single = single
        self._max_list = max_list
        self.made: dict[bytes, Reusable] = {}
        self.others: dict[bytes, Single] = {}

    def read(self, block: bytes) -> Reusable | Single:
        """What `make` makes of the block. Raises ConnectionFault when it cannot be decoded (RFC 9113 4.3)."""
        found = self.made.get(block) or self.others.get(block)
        if found is not None:
            return found
        headers, kept = self._decode(block)
        made = self._make(headers)
        if kept:
            if len(self.made) + len(self.others) >= _CACHED_BLOCKS:
                self.forget()
            if isinstance(made, self._single):
                self.others[block] = made
            else:
                self.made[block] = cast("Reusable", made)
        return made

    def forget(self) -> None:
        """What was made of known blocks no longer holds."""
        self.made.clear()
        self.others.clear()

    def detach(self) -> None:
        """The connection is gone: no more blocks are read."""
        self.forget()
        self._make = _make_nothing

    def skip(self, block: bytes) -> list[Header]:
        """Decode for the sake of the table: trailers, and requests that are refused unread."""
        return self._decode(block)[0]

    def oversized(self, headers: list[Header]) -> bool:
        return sum([len(name) + len(value) + 32 for name, value in headers]) > self._max_list

    def _decode(self, block: bytes) -> tuple[list[Header], bool]:
        table = self._decoder.header_table
        entries, first, size = len(table.dynamic_entries), _first(table.dynamic_entries), table.maxsize
        try:
            headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the header list is far too large") from error
        except (HPACKError, ValueError, IndexError, TypeError) as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, f"the header block is broken: {error}") from error
        # Entries are tuples made when added: the same newest object and count mean that nothing was added or evicted.
        after = table.dynamic_entries
        kept = len(after) == entries and _first(after) is first and table.maxsize == size
        if not kept:
            self.forget()
        return headers, kept


def _make_nothing(_: list[Header]) -> Never:
    raise ConnectionFault(ErrorCode.NO_ERROR, "the connection is gone")


def _first(entries: object) -> object:
    return entries[0] if entries else None  # type: ignore[index]


def fault(headers: list[Header]) -> str:
    """Why this request's header list is malformed (RFC 9113 8.2 and 8.3); empty when it is not."""
    seen: set[bytes] = set()
    regular = False
    for name, value in headers:
        if name.startswith(b":"):
            if regular:
                return "a pseudo-header field follows a regular one"
            if name not in _PSEUDO or name in seen:
                return f"pseudo-header field {name!r} is unknown or repeated"
            seen.add(name)
            if _BAD_PSEUDO.search(value):
                return f"field {name!r} has a forbidden character"
            continue
        regular = True
        reason = _field_fault(name, value)
        if reason:
            return reason
    if not {b":method", b":scheme", b":path"} <= seen or any(n == b":path" and not v for n, v in headers):
        return ":method, :scheme and :path must be there and not empty"
    return ""


def trailer_fault(headers: list[Header]) -> str:
    """Why these trailers are malformed; empty when they are not."""
    for name, value in headers:
        if name.startswith(b":"):
            return "trailers have no pseudo-header fields"
        reason = _field_fault(name, value)
        if reason:
            return reason
    return ""


def _field_fault(name: bytes, value: bytes) -> str:
    if not _NAME.fullmatch(name):
        return f"field name {name[:64]!r} has a forbidden character"
    if _BAD_VALUE.search(value):
        return f"field {name!r} has a forbidden character"
    if name in _HOP or (name == b"te" and value != b"trailers"):
        return f"field {name!r} belongs to HTTP/1.1"
    return ""


def content_length(headers: list[Header]) -> int:
    """The announced length; -1 when there is none, -2 when it is not one number."""
    values = {value for name, value in headers if name == b"content-length"}
    if not values:
        return -1
    value = values.pop()
    return int(value) if not values and value.isdigit() and len(value) < 20 else -2


def integer(value: int, bits: int, first: int) -> bytes:
    """An HPACK integer with a prefix of `bits` bits; `first` holds the bits above it (RFC 7541 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """A field that touches no table: literal without indexing, no Huffman coding (RFC 7541 6.2.2)."""
    return b"\x00" + integer(len(name), 7, 0) + name + integer(len(value), 7, 0) + value
