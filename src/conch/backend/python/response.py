"""`pb_utils.InferenceResponse`, and the sender that gives one outside of the return value of `execute`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conch.backend.python.calls import Calls, Cancellation
from conch.backend.python.errors import TritonError, TritonModelException, printable
from conch.backend.python.tensor import BYTES, Tensor, encode

if TYPE_CHECKING:
    from conch.backend.python.channel import Readable
    from conch.backend.python.stream import Stream

RESPONSE_FINAL = 1
_NONE: tuple[Tensor, ...] = ()


class InferenceResponse:
    """The answer to one request: outputs, or an error. Parameters are bool, int, float or str by name."""

    # As models know it: error texts name it.
    __module__ = "c_python_backend_utils"

    __slots__ = ("__weakref__", "_error", "_parameters", "_plain", "_tensors")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = _NONE,
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        for tensor in output_tensors:
            if type(tensor) is not Tensor:
                _check_tensor(tensor)
        self._tensors = output_tensors
        self._error = error
        self._parameters = parameters
        self._plain = error is None and parameters is None
        if not self._plain:
            _check_extras(error, parameters)

    def output_tensors(self) -> list[Tensor]:
        return list(self._tensors)

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """As a JSON object."""
        return json.dumps(self._parameters or {}, ensure_ascii=False, separators=(",", ":"))


class Turn:
    """Whose turn it is to answer one request: still the model's, or done. When the last one who could answer is gone
    without having done so, the client is told."""

    __slots__ = ("_answer", "awaited", "calls", "cancellation", "closed", "index", "sent", "sequence", "wanted")

    def __init__(self, calls: Calls, sequence: int, index: int, wanted: frozenset[str]) -> None:
        self.calls = calls
        self.sequence = sequence
        self.index = index
        self.wanted = wanted
        self.cancellation = Cancellation()
        self.sent = False
        self.closed = False
        #: Execute has returned None for this request: only the sender can answer it now.
        self.awaited = False
        # Bound here, so that it can be found even when the interpreter is being taken down.
        self._answer = calls.answer

    def send(self, response: InferenceResponse | None, last: bool) -> None:
        if self.closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        refuse_extra(response, sent=self.sent)
        if last:
            self.closed = True
        if response is not None:
            self.answer(response)

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancellation.ask(self.calls, self.sequence, self.index, answered=self.sent)

    def answer(self, response: InferenceResponse) -> None:
        entry, parts = describe(response, self.wanted)
        self.sent = True
        self._answer(self.sequence, self.index, entry, parts)

    def __del__(self) -> None:
        if self.awaited and not self.sent:
            text = "The model discarded the request's response sender without sending a response."
            self._answer(self.sequence, self.index, {"error": [1, text]}, [])


def refuse_extra(response: InferenceResponse | None, *, sent: bool) -> None:
    """A model that is not decoupled answers once, and not without a response."""
    if response is not None and sent:
        raise TritonModelException("Unable to send response. Non-decoupled model cannot send more than one response.")
    if response is None and not sent:
        raise TritonModelException(
            "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
        )


class InferenceResponseSender:
    """Answers one request, from any thread, during `execute` or after it returned None (for the request)."""

    __slots__ = ("__weakref__", "_turn")

    def __init__(self, turn: Turn | Stream) -> None:
        self._turn = turn

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"send() takes a pb_utils.InferenceResponse, found {response!r}")
        if flags not in {0, RESPONSE_FINAL}:
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        self._turn.send(response, bool(flags))

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. What has been answered was not cancelled."""
        return self._turn.is_cancelled()


def describe(response: InferenceResponse, wanted: frozenset[str]) -> tuple[dict[str, Any], list[Readable]]:
    """A response in full: the entry that goes into a message's meta, and the bytes of its outputs in that order."""
    if response._error is not None:
        return {"error": [int(response._error.code()), printable(response._error.message())]}, []
    outputs, parts = [], []
    for tensor in response._tensors:
        if tensor._name not in wanted:
            continue
        part = wire_bytes(tensor)
        outputs.append([tensor._name, tensor._kind, tensor.shape(), len(part)])
        parts.append(part)
    return {"outputs": outputs, "parameters": response._parameters}, parts


def wire_bytes(tensor: Tensor) -> Readable:
    """The elements as they travel: row-major, little-endian; BYTES with their lengths."""
    array = tensor._array
    if array is None:
        return tensor._raw  # type: ignore[no-any-return]
    if tensor._kind == BYTES:
        return encode(array.ravel().tolist())
    return array.tobytes()  # type: ignore[no-any-return]


def _check_tensor(tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(
            "__init__(): incompatible constructor arguments. InferenceResponse takes output_tensors, a list of "
            f"pb_utils.Tensor, found {tensor!r} in it"
        )


def _check_extras(error: Any, parameters: Any) -> None:
    if error is not None and not isinstance(error, TritonError):
        raise TypeError(
            "__init__(): incompatible constructor arguments. InferenceResponse takes error, a pb_utils.TritonError or "
            f"None, found {error!r}"
        )
    if parameters is None:
        return
    if not isinstance(parameters, dict):
        raise TypeError(f"InferenceResponse takes parameters, a dict or None, found {parameters!r}")
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
            raise TypeError(
                "response parameters must have names of type str and values of type bool, int, float or str, found "
                f"{name!r}: {value!r}"
            )
