"""Triton's errors, one class for each code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from conch.types.error import Code, InferError


class TritonError(Exception):
    """What all of them are."""


class UnknownError(TritonError): ...


class InternalError(TritonError): ...


class NotFoundError(TritonError): ...


class InvalidArgumentError(TritonError): ...


class UnavailableError(TritonError): ...


class UnsupportedError(TritonError): ...


class AlreadyExistsError(TritonError): ...


_CLASSES = {
    Code.INTERNAL: InternalError,
    Code.NOT_FOUND: NotFoundError,
    Code.INVALID_ARG: InvalidArgumentError,
    Code.UNAVAILABLE: UnavailableError,
    Code.UNSUPPORTED: UnsupportedError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
}


def as_triton(error: InferError) -> TritonError:
    return _CLASSES.get(error.code, UnknownError)(error.message + (f" ({error.hint})" if error.hint else ""))


@contextlib.contextmanager
def triton_errors() -> Iterator[None]:
    """Within, the server's errors are Triton's."""
    try:
        yield
    except InferError as error:
        raise as_triton(error) from None
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
