"""Between HTTP's bodies and what `LitAPI` steps take and give."""

from __future__ import annotations

import email.message
import email.parser
import email.utils
import http
import inspect
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

_log = logging.getLogger("conch.litserve")

_JSON: Final = "application/json"
_STATUSES: Final = frozenset(each.value for each in http.HTTPStatus if each >= http.HTTPStatus.OK)
#: Headers that the server writes for every answer.
_OURS: Final = frozenset({"content-type", "content-length", "transfer-encoding", "connection"})
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: Of a form: as many fields and files as Starlette takes, and bytes of a part's own headers.
_MOST_PARTS: Final = 2000
_MOST_HEAD: Final = 8192
#: Between a part's headers and what is in it.
_BLANK: Final = re.compile(rb"\r?\n\r?\n")


class HTTPException(Exception):  # noqa: N818  FastAPI's name
    """What a step raises to answer with another status; FastAPI's and Starlette's do as well."""

    def __init__(self, status_code: int, detail: Any = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status_code = status_code
        self.detail = detail
        self.headers = headers


class UploadFile:
    """A file of a form."""

    def __init__(self, filename: str, content_type: str, data: bytes) -> None:
        self.filename = filename
        self.content_type = content_type
        self.size = len(data)
        self.file = io.BytesIO(data)

    async def read(self, size: int = -1) -> bytes:
        return self.file.read(size)


@dataclass(frozen=True, slots=True)
class Body:
    data: bytes
    content_type: str = _JSON
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Reader = Callable[[bytes, str], Any]


def reader(decode_request: Callable[..., Any]) -> Reader:
    """How a body becomes what `decode_request` takes: by the annotation of its first parameter, if it is a pydantic
    model, else what the JSON or the form holds."""
    parameters = list(inspect.signature(decode_request, eval_str=False).parameters.values())
    annotation = parameters[0].annotation if parameters else None
    if isinstance(annotation, str):
        annotation = getattr(decode_request, "__globals__", {}).get(annotation)
    if hasattr(annotation, "model_validate"):
        return lambda data, kind: _validated(annotation, data, kind)
    return _payload


def _payload(data: bytes, content_type: str) -> Any:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_PARTS)
        except ValueError:
            raise _unreadable(f"it has more than {_MOST_PARTS} fields") from None
        return dict(pairs)
    if kind == "multipart/form-data":
        return _form(data, content_type)
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise HTTPException(
            422, [{"type": "json_invalid", "loc": ["body"], "msg": f"JSON decode error: {error}"}]
        ) from None


def _validated(model: Any, data: bytes, content_type: str) -> Any:
    try:
        return model.model_validate(_payload(data, content_type))
    except ValueError as error:
        errors = getattr(error, "errors", None)
        found: list[dict[str, Any]] = [{"msg": str(error)}]
        if callable(errors):
            found = errors(include_url=False, include_context=False, include_input=False)
        for each in found:
            each["loc"] = ["body", *each.get("loc", ())]
        raise HTTPException(422, found) from None


def _form(data: bytes, content_type: str) -> dict[str, Any]:
    head = email.message.Message()
    head["Content-Type"] = content_type
    fields: dict[str, Any] = {}
    # Parts stay as they came, also mails and forms in a form, which Python's own parser would take apart.
    for part, content in _parts(data, str(head.get_boundary() or "")):
        name = part.get_param("name", header="content-disposition")
        if name is None:
            raise _unreadable("a part of it has no name")
        name = email.utils.collapse_rfc2231_value(name)
        filename = part.get_filename()
        if filename is not None:
            fields[name] = UploadFile(filename, part.get_content_type(), content)
        else:
            fields[name] = content.decode("utf-8", "replace")
    return fields


def _parts(data: bytes, boundary: str) -> Iterator[tuple[email.message.Message, bytes]]:
    mark = re.compile(rb"\r?\n--" + re.escape(boundary.encode("latin-1", "replace")) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    _, *found = mark.split(b"\n" + data, _MOST_PARTS + 1) if boundary else [b""]
    if not found:
        raise _unreadable("its parts are not where its boundary says")
    for place, (end, part) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if end:
            return
        if place == _MOST_PARTS:
            raise _unreadable(f"it has more than {_MOST_PARTS} parts")
        head, *rest = _BLANK.split(part, 1)
        if len(head) > _MOST_HEAD:
            raise _unreadable(f"the headers of a part of it are longer than {_MOST_HEAD} bytes")
        parsed = email.parser.HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip("\r\n"))
        yield parsed, rest[0] if rest else b""


def _unreadable(why: str) -> HTTPException:
    return HTTPException(422, f"the form cannot be read: {why}")


def write(value: Any) -> Body:
    """A response's body: a response object of Starlette's, or JSON."""
    if hasattr(value, "body") and hasattr(value, "status_code"):
        kind = getattr(value, "media_type", None) or value.headers.get("content-type", "text/plain")
        status = int(value.status_code)
        if status not in _STATUSES:
            raise ValueError(f"the response has status {status}, which is no status of HTTP")
        if not _VALUE.fullmatch(kind):
            raise ValueError(f"the response has media type {kind!r}, which is no header of HTTP")
        raw = getattr(value, "raw_headers", None) or list((getattr(value, "headers", None) or {}).items())
        return Body(bytes(value.body), kind, status, _carried(raw))
    return Body(_json(value))


def _carried(headers: Iterable[tuple[str | bytes, str | bytes]]) -> tuple[tuple[str, str], ...]:
    """What goes out of headers of the program's; the server writes some itself."""
    found = []
    for pair in headers:
        name, value = [each.decode("latin-1") if isinstance(each, bytes) else str(each) for each in pair]
        if name.lower() in _OURS:
            continue
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            _log.warning("the header %r: %r cannot be sent: it is no header of HTTP", name, value)
            continue
        found.append((name, value))
    return tuple(found)


def piece(value: Any) -> bytes:
    """One value of a stream: texts as they are, anything else as a line of JSON."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return _json(value) + b"\n"


def refusal(error: BaseException) -> Body | None:
    """The answer for an exception that says its status; None for any other. Never raises."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or status not in _STATUSES:
        return None
    detail = getattr(error, "detail", str(error))
    try:
        data = _json({"detail": detail})
    except TypeError:
        data = _json({"detail": str(detail).encode("utf-8", "replace").decode()})
    headers = getattr(error, "headers", None)
    return Body(data, _JSON, status, _carried(headers.items()) if isinstance(headers, Mapping) else ())


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__} is no JSON")
