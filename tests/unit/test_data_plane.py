"""What the data plane remembers of requests, and what it does when a model does not take one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from conch.service.data import Data
from conch.types.error import InferError, unavailable
from conch.types.request import InferRequest, InputHead, RequestHead
from support.plane import EchoRegistry, echo_plane
from support.requests import Recorder


def head(**parameters: str) -> RequestHead:
    return RequestHead("identity", inputs=(InputHead("INPUT0", "FP32", (1, 1)),), parameters=parameters)


def test_equal_heads_have_one_form() -> None:
    """Whatever connection they come by."""
    data, _ = echo_plane()
    assert data.prepare(head(a="1")) is data.prepare(head(a="1"))
    assert data.prepare(head(a="1")) is not data.prepare(head(a="2"))


def test_what_clients_invent_is_not_remembered_at_any_length() -> None:
    """A thousand heads with a megabyte each would be a gigabyte that nobody asks for again."""
    data, _ = echo_plane()
    long = "x" * 5000
    assert data.prepare(head(a=long)) is not data.prepare(head(a=long))
    assert data.prepare(head(**{long: "1"})) is not data.prepare(head(**{long: "1"}))


def test_the_trace_of_a_request_that_is_refused_ends() -> None:
    """The scheduler has not taken it over, so nobody else can end it."""
    told: list[str] = []

    class Tracer:
        armed = True

        def begin(self, request: InferRequest) -> None:
            request.trace = SimpleNamespace(refused=lambda: told.append("refused"))

    def refuse(request: InferRequest, /) -> None:
        raise unavailable("the queue is full")

    data = Data(EchoRegistry(), "triton", lambda: False, Tracer())
    form = data.prepare(head())
    object.__setattr__(form, "submit", refuse)
    with pytest.raises(InferError, match="the queue is full"):
        data.infer(InferRequest(form, "", (b"\0" * 4,), Recorder(), 1))
    assert told == ["refused"]
