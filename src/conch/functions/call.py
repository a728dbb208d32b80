"""How a declared function is called: from requests' arrays to arguments, from what it gives to outputs. No protocol."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import traceback
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conch.functions.declare import Batch, Declaration
from conch.functions.loading import line_in
from conch.functions.signature import Argument, Signature
from conch.functions.values import Field, ValueRefused, decode, encode

#: One request's inputs by name; those that it leaves out are absent.
Arrays = Mapping[str, np.ndarray[Any, Any]]
#: One response's outputs in order.
Outputs = list[tuple[str, np.ndarray[Any, Any]]]

_MISSING = object()


class Call:
    """One function. `path` is the file that it is written in."""

    def __init__(self, declaration: Declaration, signature: Signature, path: Path) -> None:
        self.function = declaration.function
        self.signature = signature
        self.batch = isinstance(declaration.batch, Batch)
        self.by_row = declaration.batch is not None and not self.batch
        self._path = path
        self._reported: set[tuple[str, int]] = set()

    def plan(self, requests: Sequence[Arrays]) -> Iterator[list[int]]:
        """Which requests share a call: with `batch` those that leave out the same optional inputs."""
        if not self.batch:
            yield from ([index] for index in range(len(requests)))
            return
        groups: dict[frozenset[str], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(frozenset(request), []).append(index)
        yield from groups.values()

    def join(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Per call of the function its inputs by name: one for all rows, one per row, or one per request."""
        if self.batch and len(requests) > 1:
            return [{name: np.concatenate([each[name] for each in requests]) for name in requests[0]}]
        if self.by_row:
            rows = len(next(iter(requests[0].values()))) if requests[0] else 0
            return [{name: array[row] for name, array in requests[0].items()} for row in range(rows)]
        return list(requests)

    def together(self, requests: Sequence[Arrays], rows: Sequence[int]) -> list[Outputs]:
        """The outputs of requests that share a call; `rows` as in `split`. Raises what the function does."""
        results = []
        for arrays in self.join(requests):
            positional, named = self.arguments(arrays)
            results.append(self.function(*positional, **named))
        return self.split(results, rows)

    async def together_async(self, requests: Sequence[Arrays], rows: Sequence[int]) -> list[Outputs]:
        """As `together`, of a coroutine function."""
        called = [self.arguments(arrays) for arrays in self.join(requests)]
        results = await asyncio.gather(*[self.function(*positional, **named) for positional, named in called])
        return self.split(results, rows)

    def arguments(self, arrays: Arrays) -> tuple[list[Any], dict[str, Any]]:
        """Raises ValueRefused."""
        positional: list[Any] = []
        named: dict[str, Any] = {}
        for argument in self.signature.arguments:
            value = self._argument(argument, arrays)
            if value is _MISSING:
                continue
            if argument.positional:
                positional.append(value)
            else:
                named[argument.name] = value
        return positional, named

    def _argument(self, argument: Argument, arrays: Arrays) -> Any:
        values: dict[str, Any] = {}
        for field in argument.fields:
            array = arrays.get(field.name)
            if array is not None:
                values[field.attribute or field.name] = decode(field, array, batch=self.batch)
            elif argument.build is None:
                return _MISSING if self._has_default(argument) else None
        try:
            if argument.build is not None:
                return argument.build(**values)
            value = next(iter(values.values()))
            return value if argument.check is None else argument.check(value)
        except ValueError as error:
            # What a pydantic model, or a dataclass's __post_init__, says of the values.
            raise ValueRefused(f"{argument.name}: {error}") from error

    def _has_default(self, argument: Argument) -> bool:
        return inspect.signature(self.function).parameters[argument.name].default is not inspect.Parameter.empty

    def outputs(self, result: Any, rows: int = -1) -> Outputs:
        """Raises ValueRefused."""
        fields = self.signature.outputs
        if self.signature.returns == "one":
            return [(fields[0].name, encode(fields[0], result, rows=rows))]
        if self.signature.returns == "tuple":
            if not isinstance(result, Sequence) or len(result) != len(fields):
                raise ValueRefused(f"the function gave {result!r:.80}, it is declared to give {len(fields)} values")
            return [(field.name, encode(field, value, rows=rows)) for field, value in zip(fields, result, strict=True)]
        made: Outputs = []
        for field in fields:
            value = _part(field, result)
            if value is None and field.optional:
                continue
            made.append((field.name, encode(field, value, rows=rows)))
        return made

    def split(self, results: Sequence[Any], sizes: Sequence[int]) -> list[Outputs]:
        """The outputs of each request of a call (of several calls, row by row). `sizes` are their rows.

        Raises ValueRefused.
        """
        if self.batch:
            made = self.outputs(results[0], sum(sizes))
            cuts = np.cumsum(sizes)[:-1]
            columns = [(name, np.split(array, cuts)) for name, array in made]
            return [[(name, parts[index]) for name, parts in columns] for index in range(len(sizes))]
        if self.by_row:
            made_rows = [dict(self.outputs(result)) for result in results]
            names = list(made_rows[0])
            return [[(name, np.stack([row[name] for row in made_rows])) for name in names]]
        return [self.outputs(results[0])]

    def failure(self, error: BaseException) -> tuple[bool, str]:
        """Whether the request is to blame, and the text; the first time at a place its traceback goes to stderr."""
        if isinstance(error, ValueRefused):
            return str(error).startswith("input ") or error.__cause__ is not None, str(error)
        line = line_in(error, self._path)
        where = (type(error).__name__, line)
        if where not in self._reported:
            self._reported.add(where)
            # Not by the logger: its lines are escaped, and people are to read this one.
            sys.stderr.write("".join(traceback.format_exception(error)))
        return False, f"{type(error).__name__}: {error} ({self._path.name}:{line})"


async def stream(generator: Any) -> AsyncGenerator[Any, None]:
    """One face for both kinds of generators. A plain one holds up the others of its instance while it computes."""
    if hasattr(generator, "__aiter__"):
        async with contextlib.aclosing(generator) as values:
            async for value in values:
                yield value
        return
    with contextlib.closing(generator) as plain:
        for value in plain:
            yield value
            await asyncio.sleep(0)


def _part(field: Field, result: Any) -> Any:
    name = field.attribute or field.name
    value = result.get(name, _MISSING) if isinstance(result, dict) else getattr(result, name, _MISSING)
    if value is _MISSING and not field.optional:
        raise ValueRefused(f"the function gave no output '{name}': {result!r:.80}")
    return None if value is _MISSING else value
