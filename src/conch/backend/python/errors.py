"""The errors of `pb_utils`, and how a worker words an exception of the model."""

from __future__ import annotations

import enum
import traceback
from pathlib import Path

_HERE = str(Path(__file__).parent)


class TritonModelException(Exception):  # noqa: N818  Triton's name
    """Raised by `pb_utils`, and by models."""


class Refusal(Exception):  # noqa: N818
    """The model cannot be loaded, for a reason in words that people are told as they are."""


class ErrorCode(enum.IntEnum):
    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonError:
    """Why one response has no outputs."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    __slots__ = ("_code", "_message")

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            raise TypeError(
                "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
                "    1. c_python_backend_utils.TritonError(message: str, code: c_python_backend_utils.TritonError."
                f"__ErrorCode = <__ErrorCode.INTERNAL: 1>)\n\nInvoked with: {message!r}, {code!r}"
            )
        self._message = message
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code


def words(error: BaseException) -> str:
    """`<type>: <message>`, then `At:` and the model's frames, innermost first: the form that Triton shows."""
    name = type(error).__qualname__
    try:
        text = str(error)
    except Exception:  # noqa: BLE001  a model's own exception may be broken too
        text = "<no text: its __str__ raised>"
    lines: list[str] = []
    if not isinstance(error, SyntaxError):
        lines += [
            f"  {frame.filename}({frame.lineno}): {frame.name}\n"
            for frame in reversed(traceback.extract_tb(error.__traceback__))
            if not frame.filename.startswith((_HERE, "<frozen importlib"))
        ]
    where = "\n\nAt:\n" + "".join(lines) if lines else ""
    return printable(f"{name}: {text}{where}")


def details(error: BaseException) -> str:
    """The usual traceback, for people: without the frames that led to the model's code."""
    whole = traceback.TracebackException.from_exception(error)
    whole.stack = traceback.StackSummary.from_list([frame for frame in whole.stack if not _ours(frame)])
    return printable("".join(whole.format()))


def _ours(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith((_HERE, "<frozen importlib")) or "/importlib/" in frame.filename


def printable(text: str) -> str:
    """Lone surrogates cannot travel."""
    return text.encode("utf-8", "replace").decode()
