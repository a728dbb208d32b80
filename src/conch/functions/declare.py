"""`@conch.model`: notes that a function is a model, and how it wants to be called. The function stays as it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar, overload

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_UNITS: Final = {"us": 1.0, "ms": 1_000.0, "s": 1_000_000.0}
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


class DeclarationError(Exception):
    """A function cannot be a model; the text is one sentence that begins with file and line."""

    def __init__(self, file: str, line: int, text: str) -> None:
        super().__init__(f"{file}:{line}: {text}")


@dataclass(frozen=True, slots=True)
class _Size:
    """`size` rows at most; the first waits `wait` for others."""

    size: int
    wait: str = "0us"

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise TypeError(f"conch.{type(self).__name__}: size must be a whole number from 1, found {self.size!r}")
        if not isinstance(self.wait, str) or not _TIME.fullmatch(self.wait):
            raise TypeError(
                f'conch.{type(self).__name__}: wait must be a time such as "2ms" or "500us", found {self.wait!r}'
            )

    @property
    def wait_us(self) -> int:
        found = _TIME.fullmatch(self.wait)
        assert found is not None
        return round(float(found[1]) * _UNITS[found[2]])


class Batch(_Size):
    """The function is called once for all rows of a batch: what it takes and gives has the rows first."""

    __slots__ = ()


class Rows(_Size):
    """The function is called once per row, clients may send many: its annotations are those of one row."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """A function and what its decorator says. `file` and `line` are where it is written."""

    function: Callable[..., Any]
    name: str
    file: str
    line: int
    batch: Batch | Rows | None = None
    instances: int = 1
    #: How many calls of a coroutine function run side by side.
    concurrency: int = 64
    #: Outputs by name, for functions that return a plain dict.
    returns: Mapping[str, Any] | None = None

    def refuse(self, text: str) -> DeclarationError:
        return DeclarationError(self.file, self.line, text)


#: All that was declared in this process, in order. Only the processes that import a user's file look at it.
declared: Final[list[Declaration]] = []


@overload
def model(function: _Function, /) -> _Function: ...
@overload
def model(
    *,
    name: str = ...,
    batch: Batch | Rows | None = ...,
    instances: int = ...,
    concurrency: int = ...,
    returns: Mapping[str, Any] | None = ...,
) -> Callable[[_Function], _Function]: ...
def model(
    function: _Function | None = None,
    /,
    *,
    name: str = "",
    batch: Batch | Rows | None = None,
    instances: int = 1,
    concurrency: int = 64,
    returns: Mapping[str, Any] | None = None,
) -> _Function | Callable[[_Function], _Function]:
    """Declare a function, coroutine function or (asynchronous) generator function to be a model.

    Its annotations are its inputs and outputs. Raises TypeError for arguments that mean nothing.
    """
    _check(name, batch, instances, concurrency, returns)

    def note(function: _Function) -> _Function:
        plain = declaration_of(function, name)
        declared.append(replace(plain, batch=batch, instances=instances, concurrency=concurrency, returns=returns))
        return function

    return note if function is None else note(function)


def declaration_of(function: Callable[..., Any], name: str = "") -> Declaration:
    """As if the function was under `@conch.model`, which nobody hears of. Raises TypeError for what is no function."""
    if not inspect.isfunction(function):
        raise TypeError(f"@conch.model goes above a function (def or async def), found {function!r}")
    called = name or function.__name__
    if not _NAME.fullmatch(called):
        raise TypeError(
            f"@conch.model: the name of function '{called}' cannot name a model, letters, digits, '_', '-' and '.' "
            'can; say @conch.model(name="...")'
        )
    code = function.__code__
    return Declaration(function, called, str(Path(code.co_filename).resolve()), code.co_firstlineno)


def _check(name: Any, batch: Any, instances: Any, concurrency: Any, returns: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"@conch.model: name must be a text, found {name!r}")
    if batch is not None and not isinstance(batch, Batch | Rows):
        raise TypeError(f'@conch.model: batch must be conch.Batch(32, wait="2ms") or conch.Rows(32), found {batch!r}')
    for noun, number in (("instances", instances), ("concurrency", concurrency)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 4096:
            raise TypeError(f"@conch.model: {noun} must be a whole number from 1 to 4096, found {number!r}")
    if returns is not None and (not isinstance(returns, Mapping) or not returns):
        raise TypeError(f'@conch.model: returns must be a dict such as {{"y": conch.FP32(-1)}}, found {returns!r}')
