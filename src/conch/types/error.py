"""The one error that crosses rooms: a code of Triton's eight, and a message that is part of the contract."""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """Triton's error codes; the value is the text form used in index reasons and logs (spec: protocol 0.1)."""

    UNKNOWN = "Unknown"
    INTERNAL = "Internal"
    NOT_FOUND = "Not found"
    INVALID_ARG = "Invalid argument"
    UNAVAILABLE = "Unavailable"
    UNSUPPORTED = "Unsupported"
    ALREADY_EXISTS = "Already exists"
    CANCELLED = "Cancelled"


class InferError(Exception):
    """A refusal or failure that a client is told. HTTP and gRPC numbers for `code` exist only in `protocol`.

    `message` is what Triton says, word for word where Triton says something; `hint` says how to fix it and is shown
    where people read (logs, the command line, `conch` responses to a person), never where clients match texts.
    `retry_after_s` is in how many seconds asking again may succeed, where the server can tell; else 0.
    """

    __slots__ = ("code", "hint", "message", "retry_after_s")

    def __init__(self, code: Code, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retry_after_s = 0.0

    def __str__(self) -> str:
        """`<Code>: <message>`, the form of index reasons and log lines."""
        return f"{self.code.value}: {self.message}"


def invalid(message: str, hint: str = "") -> InferError:
    return InferError(Code.INVALID_ARG, message, hint)


def not_found(message: str, hint: str = "") -> InferError:
    return InferError(Code.NOT_FOUND, message, hint)


def internal(message: str, hint: str = "") -> InferError:
    return InferError(Code.INTERNAL, message, hint)


def unavailable(message: str, hint: str = "") -> InferError:
    return InferError(Code.UNAVAILABLE, message, hint)


def unsupported(message: str, hint: str = "") -> InferError:
    return InferError(Code.UNSUPPORTED, message, hint)


def foreign(error: BaseException) -> InferError:
    """What is told of an exception of code that is not ours; InferErrors as they are."""
    if isinstance(error, InferError):
        return error
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  whoever wrote it, it must not cost a request its answer
        text = ""
    return internal(f"{type(error).__name__}: {text}" if text else type(error).__name__)
