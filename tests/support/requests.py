"""Builders for requests that need no model, and a sink that remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from conch.types.error import InferError
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse


class Recorder:
    """A sink that keeps every call: `replies` (request, response, final) and `errors` (request, error)."""

    def __init__(self) -> None:
        self.replies: list[tuple[InferRequest, InferResponse, bool]] = []
        self.errors: list[tuple[InferRequest, InferError]] = []
        self._change = threading.Condition()

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        with self._change:
            self.replies.append((request, response, final))
            self._change.notify_all()

    def fail(self, request: InferRequest, error: InferError) -> None:
        with self._change:
            self.errors.append((request, error))
            self._change.notify_all()

    def finals(self) -> list[InferRequest]:
        """The requests that have had a final call, once for each such call."""
        return [request for request, _, final in self.replies if final] + [request for request, _ in self.errors]

    def wait(self, count: int, seconds: float = 60.0) -> None:
        """Until `count` requests are settled."""
        with self._change:
            if not self._change.wait_for(lambda: len(self.finals()) >= count, seconds):
                raise AssertionError(f"{len(self.finals())} of {count} requests were settled in {seconds} s")


def make_form(
    rows: int = 1,
    key: object = None,
    submit: Callable[[InferRequest], None] = lambda _: None,
    timeout_us: int = 0,
    **changes: Any,
) -> RequestForm:
    """A form with one FP32 input of shape [rows, 2] at position 0."""
    values: dict[str, Any] = {
        "head": RequestHead("model"),
        "model": None,
        "submit": submit,
        "version": 1,
        "generation": 0,
        "inputs": (0,),
        "order": (0,),
        "shapes": ((rows, 2),),
        "backend_shapes": ((rows, 2),),
        "sizes": (rows * 8,),
        "counts": (rows * 2,),
        "rows": rows,
        "batch_key": key,
        "outputs": None,
        "timeout_us": timeout_us,
    }
    return RequestForm(**(values | changes))


def make_request(
    form: RequestForm | None = None,
    id: str = "",
    sink: Recorder | None = None,
    data: tuple[bytes, ...] | None = None,
    queued_ns: int = 0,
) -> InferRequest:
    form = form or make_form()
    data = data if data is not None else tuple([bytes(max(0, size)) for size in form.sizes])
    request = InferRequest(form, id, data, sink or Recorder(), queued_ns)
    request.queued_ns = queued_ns
    return request
