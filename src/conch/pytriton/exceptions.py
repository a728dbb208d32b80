"""The errors of PyTriton's names."""

from __future__ import annotations


class PyTritonException(Exception):  # noqa: N818  PyTriton's name
    """What all of them are."""

    @property
    def message(self) -> str:
        return str(self)


class PyTritonValidationError(PyTritonException):
    """A value that makes no sense."""


class PyTritonBadParameterError(PyTritonException):
    """A decorator's parameter that makes no sense."""


class PyTritonRuntimeError(PyTritonException):
    """Something that went wrong while a request was served."""


class PyTritonUnrecoverableError(PyTritonException):
    """The model cannot go on: its server stops."""


class PyTritonInvalidOperationError(PyTritonException):
    """A call at a time when it makes no sense."""
