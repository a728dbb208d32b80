"""The heads of HTTP/1.1 requests: parsed strictly, once per distinct head.

What two parsers might read differently is refused, for that is how requests are smuggled (RFC 9112 11.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import httptools

#: A longer head is refused.
MAX_HEAD: Final = 65536
#: More header lines than this are refused.
MAX_HEADERS: Final = 128
#: Heads kept, and the longest that is kept.
_MAX_CACHED: Final = 1024
_MAX_CACHED_SIZE: Final = 4096

#: Headers whose repetition no two parsers need agree on.
_SINGLE: Final = frozenset({"content-length", "transfer-encoding", "host", "expect", "content-encoding"})


#: RFC 9112 3: one space between the parts, nothing else.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^\x00-\x20\x7f]+ HTTP/1\.([01])(?=\r\n|\Z)")


class BadRequestError(Exception):
    """A request that breaks the rules of HTTP; the connection is closed after the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(slots=True, eq=False)
class Head:
    """A request's head. `headers` have lower-case names; a header given twice has its values joined with `, `."""

    method: str
    #: The path as it came, without the query string.
    path: str
    headers: dict[str, str]
    #: Bytes of the body; -1 where it is chunked.
    length: int
    #: Whether the connection may serve another request.
    keep_alive: bool
    #: Whether the client is told so: HTTP/1.0 clients must be.
    say_keep_alive: bool
    #: Whether the client waits for `100 Continue` before it sends the body.
    awaits_continue: bool
    #: True when this head needs nothing but its body and an answer.
    simple: bool
    #: Whatever the owner of the connection made of this head.
    route: Any = None
    #: The longest chunked body that is read.
    limit: int = 1 << 26
    #: False for HTTP/1.0, which knows no chunks.
    modern: bool = True
    #: The header lines as they came: names in the client's spelling, and values.
    lines: list[tuple[str, str]] = field(default_factory=list)


class HeadCache:
    """`route` is called once for each head that is new, to fill `Head.route` and `Head.limit`.

    It may raise BadRequestError, to refuse a request before its body is read.
    """

    __slots__ = ("_heads", "_route")

    def __init__(self, route: Callable[[Head], None]) -> None:
        self._route = route
        self._heads: dict[bytes, Head] = {}

    def get(self, raw: bytes) -> Head:
        """The head whose bytes, up to but without the closing empty line, are `raw`. Raises BadRequestError."""
        head = self._heads.get(raw)
        if head is None:
            head = parse_head(raw)
            self._route(head)
            if len(raw) <= _MAX_CACHED_SIZE:
                if len(self._heads) >= _MAX_CACHED:
                    self._heads.clear()
                self._heads[raw] = head
        return head


class _Lines:
    """What httptools calls while it reads a head."""

    __slots__ = ("complete", "headers", "url")

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[str, str]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise BadRequestError(431, f"more than {MAX_HEADERS} header lines")
        self.headers.append((name.decode("latin-1"), value.decode("latin-1").strip(" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def parse_head(raw: bytes) -> Head:
    """Parse `raw`, a head without its closing empty line. Raises BadRequestError."""
    line = _REQUEST_LINE.match(raw)
    if line is None:
        raise _bad("the request line must be METHOD PATH HTTP/1.1")
    lines = _Lines()
    parser = httptools.HttpRequestParser(lines)
    try:
        parser.feed_data(raw + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        pass  # an offer of another protocol, which we do not take up
    except httptools.HttpParserInvalidMethodError:
        raise BadRequestError(405, "Method Not Allowed") from None
    except httptools.HttpParserCallbackError as error:
        raise (error.__context__ if isinstance(error.__context__, BadRequestError) else _bad(str(error))) from None
    except httptools.HttpParserError as error:
        # Encodings other than chunked are refused by name below.
        if not lines.complete:
            raise _bad(str(error)) from None
    if not lines.complete:
        raise _bad("the head is not complete")
    return _make_head(line[1].decode(), lines, modern=line[2] == b"1")


def _bad(detail: str) -> BadRequestError:
    return BadRequestError(400, f"malformed HTTP request: {detail}")


def _make_head(method: str, lines: _Lines, modern: bool) -> Head:
    headers: dict[str, str] = {}
    for spelled, value in lines.headers:
        name = spelled.lower()
        if name in headers:
            if name in _SINGLE:
                raise _bad(f"header '{name}' given twice")
            headers[name] += ", " + value
        else:
            headers[name] = value
    length = _body_length(headers, modern)
    options = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    keep_alive = "close" not in options if modern else "keep-alive" in options
    expect = headers.get("expect", "").lower() if modern else ""
    if expect not in {"", "100-continue"}:
        raise BadRequestError(417, f"cannot meet the expectation '{expect}'")
    return Head(
        method=method,
        path=_path(lines.url.decode("latin-1")),
        headers=headers,
        length=length,
        keep_alive=keep_alive,
        say_keep_alive=keep_alive and not modern,
        awaits_continue=bool(expect) and length != 0,
        simple=modern and keep_alive and not expect and length >= 0 and method in {"GET", "POST"},
        modern=modern,
        lines=lines.headers,
    )


def _body_length(headers: dict[str, str], modern: bool) -> int:
    encoding = headers.get("transfer-encoding")
    given = headers.get("content-length")
    if encoding is not None:
        if given is not None:
            raise _bad("both Content-Length and Transfer-Encoding are given")
        if encoding.lower() != "chunked" or not modern:
            raise BadRequestError(
                501, f"Transfer-Encoding '{encoding}' is not supported, only chunked with HTTP/1.1 is"
            )
        return -1
    if given is None:
        return 0
    if not given.isascii() or not given.isdigit() or len(given) > 19:
        raise _bad(f"Content-Length '{given[:40]}' is not a number of bytes")
    return int(given)


def _path(url: str) -> str:
    path = url.partition("?")[0].partition("#")[0]
    if not path.startswith("/") and "://" in path:
        # The absolute form (RFC 9112 3.2.2), as sent to proxies.
        path = "/" + path.partition("://")[2].partition("/")[2]
    return path
