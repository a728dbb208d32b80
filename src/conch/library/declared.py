"""Functions under `@conch.model` (or plain ones with annotations) that run in the program's own process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conch.adopt.functions import function_config
from conch.backend.api import Placement
from conch.backend.program import AsyncCopy, Call, Copy
from conch.functions.call import Call as FunctionCall
from conch.functions.call import Outputs, stream
from conch.functions.declare import Declaration, declaration_of, declared
from conch.functions.outline import outline
from conch.functions.signature import read_signature
from conch.library.bound import Bound
from conch.types.error import InferError, internal, invalid


def bound_function(function: Callable[..., Any]) -> Bound:
    """Raises DeclarationError, and TypeError for what is no function."""
    declaration = _declaration(function)
    signature = read_signature(declaration)
    outlined = outline(declaration, signature)
    config = function_config(outlined, declaration.name)
    if "MAX_CONCURRENT_EXECUTIONS" in config.parameters:
        del config.parameters["MAX_CONCURRENT_EXECUTIONS"]
    call = FunctionCall(declaration, signature, Path(declaration.file))
    return Bound(config, _Declared(call, outlined["concurrency"]))


def _declaration(function: Callable[..., Any]) -> Declaration:
    found = [each for each in declared if each.function is function]
    return found[-1] if found else declaration_of(function)


class _Declared:
    """A `Program`."""

    def __init__(self, call: FunctionCall, concurrency: int) -> None:
        self._call = call
        self._concurrency = concurrency

    def open(self, placement: Placement) -> Copy | AsyncCopy:
        signature = self._call.signature
        if signature.asynchronous:
            return _Coroutine(self._call, 4096 if signature.decoupled else self._concurrency)
        return _Generator(self._call) if signature.decoupled else _Plain(self._call)


class _Plain:
    def __init__(self, call: FunctionCall) -> None:
        self._call = call

    def run(self, calls: Sequence[Call]) -> None:
        call = self._call
        read = [each.inputs for each in calls]
        for group in call.plan(read):
            members = [calls[index] for index in group]
            try:
                _share(call.together([read[index] for index in group], [each.rows for each in members]), members)
            except Exception as error:  # noqa: BLE001  the user's code
                _fail(call, members, error)

    def close(self) -> None:
        """Nothing is held."""


class _Generator:
    """One stream at a time; others wait for it."""

    def __init__(self, call: FunctionCall) -> None:
        self._call = call

    def run(self, calls: Sequence[Call]) -> None:
        for each in calls:
            try:
                positional, named = self._call.arguments(each.inputs)
                with contextlib.closing(self._call.function(*positional, **named)) as values:
                    for value in values:
                        each.wait_for_reader()
                        if each.cancelled:
                            break
                        each.reply(dict(self._call.outputs(value)))
                each.end()
            except Exception as error:  # noqa: BLE001  the user's code
                _fail(self._call, [each], error)

    def close(self) -> None:
        """Nothing is held."""


class _Coroutine:
    """Calls overlap, within a batch and between batches."""

    def __init__(self, call: FunctionCall, concurrency: int) -> None:
        self._call = call
        self.concurrency = concurrency

    async def answer(self, calls: Sequence[Call]) -> None:
        if self._call.signature.decoupled:
            await asyncio.gather(*[self._stream(each) for each in calls])
            return
        read = [each.inputs for each in calls]
        groups = [
            self._group([calls[index] for index in group], [read[index] for index in group])
            for group in self._call.plan(read)
        ]
        await asyncio.gather(*groups)

    async def _group(self, members: Sequence[Call], read: list[Any]) -> None:
        call = self._call
        try:
            _share(await call.together_async(read, [each.rows for each in members]), members)
        except Exception as error:  # noqa: BLE001  the user's code
            _fail(call, members, error)

    async def _stream(self, each: Call) -> None:
        try:
            positional, named = self._call.arguments(each.inputs)
            async with contextlib.aclosing(stream(self._call.function(*positional, **named))) as values:
                async for value in values:
                    await each.reader()
                    if each.cancelled:
                        break
                    each.reply(dict(self._call.outputs(value)))
            each.end()
        except Exception as error:  # noqa: BLE001  the user's code
            _fail(self._call, [each], error)

    def close(self) -> None:
        """Nothing is held."""


def _share(answers: Sequence[Outputs], members: Sequence[Call]) -> None:
    for each, outputs in zip(members, answers, strict=True):
        each.reply(dict(outputs))


def _fail(call: FunctionCall, members: Sequence[Call], error: Exception) -> None:
    if not isinstance(error, InferError):
        blamed, text = call.failure(error)
        error = invalid(text) if blamed else internal(text)
    for each in members:
        if not each.settled:
            each.fail(error)
