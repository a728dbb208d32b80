"""PyTriton's decorators: between the list of requests that the server gives and the arrays that functions take."""

from __future__ import annotations

import functools
import inspect
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from conch.pytriton.context import BoundModel, TritonContext, model
from conch.pytriton.exceptions import PyTritonBadParameterError, PyTritonRuntimeError, PyTritonValidationError
from conch.pytriton.padding import ConstantPadder

__all__ = [
    "ConstantPadder", "TritonContext", "batch", "convert_output", "fill_optionals", "first_value", "group_by_keys",
    "group_by_values", "pad_batch", "sample", "triton_context",
]  # fmt: skip

Arrays = dict[str, np.ndarray[Any, Any]]
Infer = Callable[..., Any]

#: The keyword that `@triton_context` adds; it is no input.
_CONTEXT: Final = "triton_context"


def convert_output(outputs: Any, model_config: BoundModel | None = None) -> Arrays:
    """A function may give a dict, or a list in the order of the model's outputs. Raises PyTritonValidationError."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if not isinstance(outputs, list | tuple):
        raise PyTritonValidationError(f"expected a dict or a list of outputs, found {type(outputs).__name__}")
    names = [each.name for each in (model_config or model()).outputs]
    if len(names) != len(outputs):
        raise PyTritonValidationError(f"the function gave {len(outputs)} outputs, the model has {len(names)}: {names}")
    return {str(name): output for name, output in zip(names, outputs, strict=True)}


def batch(function: Infer) -> Infer:
    """The function gets the inputs of all requests by name, joined along the first dimension, and gives outputs so."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        *own, requests = args
        names = list(requests[0])
        if any(set(each) != set(names) for each in requests):
            raise PyTritonValidationError(
                "requests of one batch have different inputs: put @group_by_keys above @batch, or @fill_optionals"
            )
        inputs = {name: np.concatenate([each[name] for each in requests]) for name in names}
        sizes = [len(each[names[0]]) for each in requests]
        result = function(*own, **kwargs, **inputs)
        if inspect.isgenerator(result):
            return (_split(convert_output(each), sizes) for each in result)
        return _split(convert_output(result), sizes)

    return call


def sample(function: Infer) -> Infer:
    """For models that do not batch: the function gets the inputs of one request by name."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        *own, requests = args
        result = function(*own, **kwargs, **dict(requests[0]))
        if inspect.isgenerator(result):
            return ([convert_output(each)] for each in result)
        return [convert_output(result)]

    return call


def group_by_keys(function: Infer) -> Infer:
    """Requests that have the same inputs are given together; above `@batch`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> list[Any]:
        *own, requests = args
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(tuple(sorted(request)), []).append(index)
        results: list[Any] = [None] * len(requests)
        for _, members in sorted(groups.items()):
            found = function(*own, [requests[index] for index in members], **kwargs)
            for index, result in zip(members, found, strict=True):
                results[index] = result
        return results

    return call


def group_by_values(*keys: str, pad_fn: Callable[[list[Any]], list[Any]] | None = None) -> Callable[[Infer], Infer]:
    """Rows that have equal values of these inputs are given together; below `@batch`."""

    def decorate(function: Infer) -> Infer:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Arrays:
            inputs, other = _inputs(kwargs)
            rows = len(next(iter(inputs.values())))
            groups: dict[tuple[bytes, ...], list[int]] = {}
            for row in range(rows):
                groups.setdefault(tuple(_comparable(inputs[key][row]) for key in keys), []).append(row)
            found = [
                convert_output(function(*args, **{name: array[members] for name, array in inputs.items()}, **other))
                for members in groups.values()
            ]
            found = found if pad_fn is None else pad_fn(found)
            return _gather(list(groups.values()), found, rows)

        return call

    return decorate


def fill_optionals(**defaults: np.ndarray[Any, Any]) -> Callable[[Infer], Infer]:
    """Inputs that a request leaves out get these values (without the batch dimension); above all others."""

    def decorate(function: Infer) -> Infer:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            *own, requests = args
            bound = model()
            _check_defaults(defaults, bound)
            for request in requests:
                rows = len(next(iter(request.values()))) if bound.batching else 0
                for name, value in defaults.items():
                    if name not in request:
                        request[name] = np.repeat(value[None], rows, axis=0) if bound.batching else value
            return function(*own, requests, **kwargs)

        return call

    return decorate


def first_value(*keys: str, squeeze_single_values: bool = True, strict: bool = True) -> Callable[[Infer], Infer]:
    """These inputs are one value for the whole batch (all must be equal, if `strict`), a scalar where it is single."""
    if _CONTEXT in keys:
        raise PyTritonBadParameterError(f"'{_CONTEXT}' is no input, @first_value cannot take it")

    def first(inputs: Any) -> None:
        for key in keys:
            if key not in inputs:
                continue
            values = inputs[key]
            if strict and any(_comparable(each) != _comparable(values[0]) for each in values[1:]):
                raise PyTritonRuntimeError(
                    f"the values of input '{key}' in a batch are not equal, which @first_value expects: group them by "
                    "@group_by_values, or say strict=False"
                )
            value = values[0]
            single = squeeze_single_values and np.ndim(value) and np.size(value) == 1
            inputs[key] = np.squeeze(value)[()] if single else value

    def decorate(function: Infer) -> Infer:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not model().batching:
                raise PyTritonRuntimeError("@first_value is for models that batch")
            if _inputs(kwargs)[0]:
                first(kwargs)
            else:
                for request in args[-1]:
                    first(request)
            return function(*args, **kwargs)

        return call

    return decorate


def pad_batch(function: Infer) -> Infer:
    """The last row is repeated until the batch has a preferred size, or the largest; below `@batch`. Outputs are cut to
    the rows that came."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = model()
        inputs, other = _inputs(kwargs)
        rows = len(next(iter(inputs.values())))
        sizes = [*sorted(bound.batcher.preferred_batch_size or ()), bound.max_batch_size]
        missing = sizes[bisect_left(sizes, rows)] - rows
        padded = {
            name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in inputs.items()
        }
        outputs = convert_output(function(*args, **padded, **other))
        return {name: array[:rows] for name, array in outputs.items()}

    return call


def triton_context(function: Infer) -> Infer:
    """The function gets `triton_context`, by which it can look at the model's config."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, **{_CONTEXT: TritonContext(model())})

    return call


def _inputs(kwargs: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """The inputs, and what is none."""
    other = {name: value for name, value in kwargs.items() if name == _CONTEXT}
    return {name: value for name, value in kwargs.items() if name != _CONTEXT}, other


def _split(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    """Each request's rows. Raises ValueError where there are more or fewer."""
    rows = sum(sizes)
    wrong = {name: array.shape for name, array in outputs.items() if not np.ndim(array) or len(array) != rows}
    if wrong:
        shown = ", ".join(f"{name}: {list(shape)}" for name, shape in wrong.items())
        raise ValueError(f"outputs have another number of rows than the batch of {rows}: {shown}")
    return list(_cut(outputs, sizes))


def _cut(outputs: Arrays, sizes: Sequence[int]) -> Iterator[Arrays]:
    begin = 0
    for size in sizes:
        yield {name: array[begin : begin + size] for name, array in outputs.items()}
        begin += size


def _gather(groups: Sequence[list[int]], found: Sequence[Arrays], rows: int) -> Arrays:
    whole: Arrays = {}
    for members, outputs in zip(groups, found, strict=True):
        for name, array in outputs.items():
            into = whole.setdefault(name, np.zeros((rows, *array.shape[1:]), dtype=array.dtype))
            into[members] = array
    return whole


def _comparable(value: Any) -> bytes:
    array = np.asarray(value)
    return repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes()


def _check_defaults(defaults: Mapping[str, Any], bound: BoundModel) -> None:
    inputs = {each.name: each for each in bound.inputs}
    for name, value in defaults.items():
        entry = inputs.get(name)
        if entry is None:
            raise PyTritonBadParameterError(f"@fill_optionals names '{name}', the model's inputs are {list(inputs)}")
        if not isinstance(value, np.ndarray):
            raise PyTritonBadParameterError(f"@fill_optionals: '{name}' must be a numpy array, found {value!r:.80}")
        text = entry.dtype is np.bytes_ and value.dtype.kind in "OSU"
        fits = value.ndim == len(entry.shape) and all(
            size in (-1, have) for size, have in zip(entry.shape, value.shape, strict=True)
        )
        if not (text or value.dtype.type is entry.dtype) or not fits:
            raise PyTritonBadParameterError(
                f"@fill_optionals: '{name}' is {value.dtype}{list(value.shape)}, the model's input is "
                f"{np.dtype(entry.dtype)}{list(entry.shape)}"
            )
