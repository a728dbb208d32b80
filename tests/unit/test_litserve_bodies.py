"""Bodies of the LitServe face: forms in, responses and refusals out."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from conch.litserve.web import HTTPException, reader, refusal, write

INNER = b"--y\r\nContent-Type: text/plain\r\n\r\na\r\n--y--\r\n"


def any_body(body: Any) -> None: ...


def form(data: bytes, boundary: str = "x") -> Any:
    return reader(any_body)(data, f"multipart/form-data; boundary={boundary}")


def part(name: str, content: bytes, kind: str = "text/plain", filename: str = "f") -> bytes:
    head = (
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: {kind}\r\n\r\n'
    )
    return head.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("message/rfc822", b"Subject: hello\r\n\r\nbody\r\n"),
        ("multipart/mixed; boundary=y", INNER),
        ("application/octet-stream", bytes(range(256)) + b"\r\n--xy\r\n--"),
        ("text/plain", b""),
    ],
)
def test_files_of_a_form_arrive_as_they_are(kind: str, content: bytes) -> None:
    """Also mails and forms in a form, and bytes that look like its boundary."""
    file = form(part("f", content, kind, "é.eml") + part("g", b"other") + b"--x--\r\nepilogue")
    assert file["f"].file.read() == content
    assert (file["f"].filename, file["f"].content_type) == ("é.eml", kind.partition(";")[0])
    assert file["g"].file.read() == b"other"


def test_fields_are_texts_and_what_is_no_form_is_refused() -> None:
    """A quoted boundary, lines that end in one character, no parts at all."""
    assert form(b'--x y\nContent-Disposition: form-data; name="a"\n\nb\n--x y--', '"x y"') == {"a": "b"}
    for data, boundary in ((b"nothing", "x"), (b"--x--", '""'), (b"", "x")):
        with pytest.raises(HTTPException) as caught:
            form(data, boundary)
        assert caught.value.status_code == 422


class Strict(BaseModel):
    n: Any

    @field_validator("n")
    @classmethod
    def refuse(cls, value: Any) -> Any:
        raise ValueError("never")


def strict(request: Strict) -> None: ...


def test_details_that_are_no_json_are_texts() -> None:
    """Files in a form that does not fit, and whatever a step gives as its detail: never an exception."""
    with pytest.raises(HTTPException) as caught:
        reader(strict)(part("n", b"x") + b"--x--", "multipart/form-data; boundary=x")
    answer = refusal(caught.value)
    assert answer is not None
    assert json.loads(answer.data)["detail"][0]["loc"] == ["body", "n"]
    for detail in (object(), {"a": {1j}}, "\ud800", b"\xff"):
        answer = refusal(HTTPException(400, detail))
        assert answer is not None
        assert isinstance(json.loads(answer.data)["detail"], str)
    assert refusal(HTTPException(1000)) is None
    with pytest.raises(ValueError, match="status 7"):
        write(SimpleNamespace(body=b"", status_code=7, media_type="text/plain"))


def test_headers_go_out(caplog: pytest.LogCaptureFixture) -> None:
    """Of exceptions and of responses, several of one name too; not those of the server, nor what is no header."""
    answer = refusal(HTTPException(429, "later", {"Retry-After": "7", "Content-Length": "9", "X-Bad": "a\r\nb: c"}))
    assert answer is not None
    assert answer.headers == (("Retry-After", "7"),)
    assert "X-Bad" in caplog.text
    raw = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=\xe9"), (b"content-type", b"text/html")]
    body = write(SimpleNamespace(body=b"x", status_code=200, media_type="text/html", raw_headers=raw))
    assert body.headers == (("set-cookie", "a=1"), ("set-cookie", "b=é"))


def test_names_of_parts_are_texts() -> None:
    """One in another character set is decoded, a part without one is refused; blank lines end the headers once."""
    data = b"--x\r\nContent-Disposition: form-data; name*=utf-8''%C3%A9\r\n\r\n1\r\n--x--"
    assert form(data) == {"é": "1"}
    assert form(b'--x\nContent-Disposition: form-data; name="a"\n\nb\r\n\r\nc\n--x--') == {"a": "b\r\n\r\nc"}
    with pytest.raises(HTTPException) as caught:
        form(b"--x\r\nContent-Type: text/plain\r\n\r\n1\r\n--x--")
    assert (caught.value.status_code, caught.value.detail) == (
        422,
        "the form cannot be read: a part of it has no name",
    )


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (part("a", b"") * 2001, "multipart/form-data; boundary=x", "more than 2000 parts"),
        (part("a" * 9000, b""), "multipart/form-data; boundary=x", "the headers of a part of it are longer"),
        (b"a&" * 2001, "application/x-www-form-urlencoded", "more than 2000 fields"),
    ],
)
def test_forms_that_cost_more_than_their_bytes_are_refused(data: bytes, kind: str, said: str) -> None:
    """Parts, fields and headers without end would take memory and time far beyond the size of the body."""
    with pytest.raises(HTTPException) as caught:
        reader(any_body)(data, kind)
    assert caught.value.status_code == 422
    assert said in caught.value.detail
    assert len(form(part("a", b"") * 2000 + b"--x--")) == 1


@pytest.mark.parametrize("kind", ["text/plain\r\nX-More: 1", "text/plain; 你"])
def test_a_media_type_is_one_header(kind: str) -> None:
    """What would write headers of its own is the program's error."""
    with pytest.raises(ValueError, match=r"the response has media type .*, which is no header of HTTP"):
        write(SimpleNamespace(body=b"", status_code=200, media_type=kind))
