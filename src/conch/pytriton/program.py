"""Runs an inference callable as a model of the server."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, Never

import numpy as np

from conch.backend.api import Placement
from conch.backend.program import AsyncCopy, Call, Copy
from conch.pytriton.context import BoundModel, current
from conch.pytriton.exceptions import PyTritonRuntimeError, PyTritonUnrecoverableError
from conch.pytriton.proxy.types import Request
from conch.types.error import internal

#: Batches of one coroutine function that may overlap.
_OVERLAP = 64


class CallableProgram:
    """A `Program`: one callable for each instance. `dead` hears of one that cannot go on."""

    def __init__(self, functions: Sequence[Callable[..., Any]], model: BoundModel, dead: Callable[[], object]) -> None:
        #: Instances are opened side by side.
        self._functions = itertools.cycle(functions)
        self._model = model
        self._dead = dead

    def open(self, placement: Placement) -> Copy | AsyncCopy:
        function = next(self._functions)
        called = function if inspect.isroutine(function) else type(function).__call__
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            return _Async(function, self._model, self._dead)
        return _Plain(function, self._model, self._dead)


class _Plain:
    def __init__(self, function: Callable[..., Any], model: BoundModel, dead: Callable[[], object]) -> None:
        self._function = function
        self._model = model
        self._dead = dead

    def run(self, calls: Sequence[Call]) -> None:
        context = copy_context()
        context.run(current.set, self._model)
        try:
            result = context.run(self._function, _requests(calls))
            if not inspect.isgenerator(result):
                _answer(self._model, calls, result)
                return
            with contextlib.closing(result):
                for each in _in(context, result):
                    for call in calls:
                        call.wait_for_reader()
                    if all(call.cancelled for call in calls):
                        break
                    _respond(self._model, calls, each)
        except PyTritonUnrecoverableError:
            self._dead()
            raise

    def close(self) -> None:
        """Nothing is held."""


class _Async:
    concurrency = _OVERLAP

    def __init__(self, function: Callable[..., Any], model: BoundModel, dead: Callable[[], object]) -> None:
        self._function = function
        self._model = model
        self._dead = dead

    async def answer(self, calls: Sequence[Call]) -> None:
        current.set(self._model)
        try:
            result: Any = self._function(_requests(calls))
            if not inspect.isasyncgen(result):
                _answer(self._model, calls, await result)
                return
            await self._stream(calls, result)
        except PyTritonUnrecoverableError:
            self._dead()
            raise

    async def _stream(self, calls: Sequence[Call], result: AsyncGenerator[Any, Never]) -> None:
        async with contextlib.aclosing(result):
            async for each in result:
                for call in calls:
                    await call.reader()
                if all(call.cancelled for call in calls):
                    break
                _respond(self._model, calls, each)

    def close(self) -> None:
        """Nothing is held."""


def _requests(calls: Sequence[Call]) -> list[Request]:
    return [Request(call.inputs, call.parameters) for call in calls]


def _in(context: Any, generator: Iterator[Any]) -> Iterator[Any]:
    """The generator's values, made where decorators find their model."""
    end = object()
    while (value := context.run(next, generator, end)) is not end:
        yield value


def _answer(model: BoundModel, calls: Sequence[Call], results: Any) -> None:
    for call, outputs in zip(calls, _checked(model, calls, results), strict=True):
        call.reply(_arrays(model, outputs))


def _respond(model: BoundModel, calls: Sequence[Call], results: Any) -> None:
    """One more response for each request that has one; None is none."""
    if not model.decoupled:
        raise PyTritonRuntimeError(
            f"model '{model.model_name}' yields responses and is not decoupled: say ModelConfig(decoupled=True)"
        )
    for call, outputs in zip(calls, _checked(model, calls, results), strict=True):
        if outputs is not None:
            call.reply(_arrays(model, outputs))


def _checked(model: BoundModel, calls: Sequence[Call], results: Any) -> list[Any]:
    if not isinstance(results, list | tuple) or len(results) != len(calls):
        found = f"{len(results)}" if isinstance(results, list | tuple) else type(results).__name__
        raise internal(
            f"model '{model.model_name}' was given {len(calls)} requests and gave {found}, expected a list with a dict "
            "of outputs for each",
            "put @batch or @sample above the function",
        )
    return list(results)


def _arrays(model: BoundModel, outputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(outputs, dict):
        raise internal(
            f"model '{model.model_name}' gave {type(outputs).__name__} for a request, expected a dict of arrays by name"
        )
    return {name: np.asarray(value) for name, value in outputs.items()}
