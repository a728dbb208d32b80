"""Between HTTP's bodies and what `LitAPI` steps take and give."""

from __future__ import annotations

import email.parser
import email.policy
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

_JSON: Final = "application/json"


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
        return dict(parse_qsl(data.decode("utf-8", "replace"), keep_blank_values=True))
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
            found = errors(include_url=False, include_context=False)
        for each in found:
            each["loc"] = ["body", *each.get("loc", ())]
        raise HTTPException(422, found) from None


def _form(data: bytes, content_type: str) -> dict[str, Any]:
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode("latin-1", "replace")
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + data)
    if not message.is_multipart():
        raise HTTPException(422, "the form cannot be read: its parts are not where its boundary says")
    fields: dict[str, Any] = {}
    parts: Any = message.get_payload()
    for part in parts:
        name = str(part.get_param("name", header="content-disposition"))
        content: bytes = part.get_payload(decode=True) or b""
        filename = part.get_filename()
        if filename is not None:
            fields[name] = UploadFile(filename, part.get_content_type(), content)
        else:
            fields[name] = content.decode("utf-8", "replace")
    return fields


def write(value: Any) -> Body:
    """A response's body: a response object of Starlette's, or JSON."""
    if hasattr(value, "body") and hasattr(value, "status_code"):
        kind = getattr(value, "media_type", None) or value.headers.get("content-type", "text/plain")
        return Body(bytes(value.body), kind, int(value.status_code))
    return Body(_json(value))


def piece(value: Any) -> bytes:
    """One value of a stream: texts as they are, anything else as a line of JSON."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return _json(value) + b"\n"


def refusal(error: BaseException) -> Body | None:
    """The answer for an exception that says its status; None for any other."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int):
        return None
    return Body(_json({"detail": getattr(error, "detail", str(error))}), _JSON, status)


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
