"""The open end of a request to a decoupled model: any number of responses, from any thread, until the final one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from conch.backend.python.calls import Calls, Cancellation
from conch.backend.python.channel import INLINE, key_of
from conch.backend.python.errors import TritonModelException, printable
from conch.backend.python.outbox import Outbox
from conch.backend.python.response import InferenceResponse, refuse_extra, wire_bytes
from conch.backend.python.tensor import BYTES

#: So many layouts of responses are remembered.
LAYOUTS = 1024


class Stream:
    """Lives as long as someone could still answer: when it goes without a final response, the client is told."""

    __slots__ = ("_outbox", "calls", "cancellation", "closed", "index", "key", "sequence", "wanted")

    def __init__(self, calls: Calls, outbox: Outbox, sequence: int, index: int, wanted: frozenset[str]) -> None:
        self._outbox = outbox
        self.calls = calls
        self.sequence = sequence
        self.index = index
        self.wanted = wanted
        self.key = key_of(sequence, index)
        self.cancellation = Cancellation()
        #: Nothing can be sent any more.
        self.closed = False

    def send(self, response: InferenceResponse | None, last: bool) -> None:
        if self.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if last:
            self.closed = True
        outputs, extras, size = "null", "", 0
        parts: list[Any] = []
        if response is not None:
            outputs, extras, parts, size = _describe(response, self.wanted, self._outbox.known)
        try:
            self._put(outputs, extras, parts, size, last)
        except OSError as error:
            self.closed = False
            raise TritonModelException(f"Unable to send response. It needs {size} bytes of memory: {error}") from error

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancellation.ask(self.calls, self.sequence, self.index, answered=self.closed)

    def fail(self, text: str) -> None:
        """The final answer, if there was none yet, is this error."""
        if not self.closed:
            self.closed = True
            self._put("null", _error(1, text), [], 0, True)

    def release(self) -> bool:
        """The request is to be run again, and a later batch answers it; False if it has its final response already."""
        if self.closed:
            return False
        self.closed = True
        return True

    def _put(self, outputs: str, extras: str, parts: list[Any], size: int, last: bool) -> None:
        # The extras are JSON within JSON: what cannot be read there spoils one response, not its neighbours.
        shown = json.dumps(extras) if extras else '""'
        line = f"[{self.key},{'true' if last else 'false'},{outputs},{shown}]".encode()
        self._outbox.put(self.key, line, parts, size, last)

    def __del__(self) -> None:
        self.fail("The model discarded the request's response sender without sending a final response.")


class Single(Stream):
    """The open end of a request to a model that is not decoupled: there is one response, and it is the final one."""

    __slots__ = ("_sent",)

    def __init__(self, calls: Calls, outbox: Outbox, sequence: int, index: int, wanted: frozenset[str]) -> None:
        super().__init__(calls, outbox, sequence, index, wanted)
        self._sent = False

    def send(self, response: InferenceResponse | None, last: bool) -> None:
        if self.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        refuse_extra(response, sent=self._sent)
        if response is not None:
            super().send(response, True)
            self._sent = True
        self.closed = last

    def is_cancelled(self) -> bool:
        return self.cancellation.ask(self.calls, self.sequence, self.index, answered=self._sent)

    def fail(self, text: str) -> None:
        if not self._sent:
            super().fail(text)


def _error(code: int, text: str) -> str:
    return json.dumps({"error": [code, printable(text)]})


def _describe(
    response: InferenceResponse, wanted: frozenset[str], known: dict[Any, str]
) -> tuple[str, str, list[Any], int]:
    """The outputs and the extras (error, parameters) as JSON, the bytes of the outputs, and how many these are."""
    if response._error is not None:
        return "null", _error(int(response._error.code()), response._error.message()), [], 0
    layout, parts, size = [], [], 0
    for tensor in response._tensors:
        name = tensor._name
        if name not in wanted:
            continue
        array = tensor._array
        part: Any
        if array is None or tensor._kind == BYTES:
            part, shape = wire_bytes(tensor), tuple(tensor.shape())
        elif array.nbytes > INLINE:
            # Written to shared memory right away, from where it lies.
            part, shape = np.ascontiguousarray(array).reshape(-1).view(np.uint8), array.shape
        else:
            part, shape = array.tobytes(), array.shape
        layout.append((name, tensor._kind, shape, len(part)))
        parts.append(part)
        size += len(part)
    key = tuple(layout)
    outputs = known.get(key)
    if outputs is None:
        if len(known) >= LAYOUTS:
            known.clear()
        outputs = known[key] = json.dumps(layout)
    extras = json.dumps({"parameters": response._parameters}) if response._parameters else ""
    return outputs, extras, parts, size
