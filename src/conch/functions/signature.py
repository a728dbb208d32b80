"""From a function's annotations to the inputs and outputs of its model, with an error for each that says nothing."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conch.functions.annotations import NotTensor, constraint, fields_of, read_annotation
from conch.functions.declare import Batch, Declaration
from conch.functions.kinds import Tensor
from conch.functions.values import Field

_STREAMS: Final = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


@dataclass(frozen=True, slots=True)
class Argument:
    """One parameter of the function: a field, or with `build` a structure of fields."""

    name: str
    fields: tuple[Field, ...]
    build: Callable[..., Any] | None = None
    #: Called by position because Python allows nothing else.
    positional: bool = False
    #: What the annotation demands of the value besides its type; raises ValueError.
    check: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    arguments: tuple[Argument, ...]
    outputs: tuple[Field, ...]
    #: "one" value, a "tuple", or "fields" (a dict, or an object with attributes).
    returns: str
    #: A generator: one response for each value.
    decoupled: bool
    asynchronous: bool

    @property
    def inputs(self) -> tuple[Field, ...]:
        return tuple([field for argument in self.arguments for field in argument.fields])


def read_signature(declaration: Declaration) -> Signature:
    """Raises DeclarationError."""
    function = declaration.function
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # an annotation may be any expression of the user's
        raise declaration.refuse(
            f"an annotation of '{function.__name__}' cannot be read: {type(error).__name__}: {error}"
        ) from error
    decoupled = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if decoupled and declaration.batch is not None:
        raise declaration.refuse(
            f"'{function.__name__}' is a generator, which answers one request at a time: leave batch= out"
        )
    arguments = tuple(_arguments(declaration, hints))
    outputs, returns = _outputs(declaration, hints, decoupled)
    signature = Signature(
        arguments,
        outputs,
        returns,
        decoupled,
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function),
    )
    _check_names(declaration, "input", signature.inputs)
    _check_names(declaration, "output", signature.outputs)
    if not signature.inputs:
        raise declaration.refuse(
            f"'{function.__name__}' takes nothing: a model needs an input, such as x: conch.Array[\"FP32\", -1]"
        )
    return signature


def _arguments(declaration: Declaration, hints: dict[str, Any]) -> Iterator[Argument]:
    function = declaration.function
    for parameter in inspect.signature(function).parameters.values():
        name = parameter.name
        where = f"parameter '{name}' of '{function.__name__}'"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise declaration.refuse(f"{where} takes any number of values: name each input of the model")
        if name not in hints:
            raise declaration.refuse(
                f'{where} has no annotation: write {name}: conch.Array["FP32", -1], or str, int, float, bool, list[...]'
            )
        optional = parameter.default is not parameter.empty
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        structure = fields_of(hints[name])
        if structure is None:
            fields = [_field(declaration, where, name, hints[name], optional)]
            yield Argument(name, tuple(fields), None, positional, constraint(hints[name]))
            continue
        fields = [
            _field(declaration, f"field '{each.name}' of {where}", each.name, each.annotation, not each.required)
            for each in structure
        ]
        if declaration.batch is not None and isinstance(declaration.batch, Batch) and optional:
            raise declaration.refuse(f"{where} has a default, which a structure cannot have with conch.Batch")
        yield Argument(name, tuple(fields), hints[name], positional)


def _outputs(declaration: Declaration, hints: dict[str, Any], decoupled: bool) -> tuple[tuple[Field, ...], str]:
    function = declaration.function
    where = f"the result of '{function.__name__}'"
    if declaration.returns is not None:
        return tuple(
            [
                _field(declaration, f"output '{name}' of '{function.__name__}'", name, _spoken(annotation), False)
                for name, annotation in declaration.returns.items()
            ]
        ), "fields"
    if "return" not in hints or hints["return"] is type(None):
        raise declaration.refuse(
            f'{where} has no annotation: write -> conch.Array["FP32", -1], -> str, or a dataclass of the outputs'
        )
    annotation = hints["return"]
    if decoupled:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin not in _STREAMS or not arguments:
            raise declaration.refuse(f"{where}, a generator, must be annotated as Iterator[...] or AsyncIterator[...]")
        annotation = arguments[0]
    structure = fields_of(annotation)
    if structure is not None:
        return tuple(
            [
                _field(declaration, f"field '{each.name}' of {where}", each.name, each.annotation, not each.required)
                for each in structure
            ]
        ), "fields"
    if typing.get_origin(annotation) is tuple:
        parts = typing.get_args(annotation)
        if Ellipsis in parts:
            raise declaration.refuse(f"{where} is a tuple of any length: name each output, or return list[...]")
        return tuple(
            [
                _field(declaration, f"part {index} of {where}", f"output_{index}", part, False)
                for index, part in enumerate(parts)
            ]
        ), "tuple"
    if annotation is dict or typing.get_origin(annotation) is dict:
        raise declaration.refuse(
            f"{where} is a dict, which does not say what it holds: return a TypedDict or a dataclass, or say "
            '@conch.model(returns={"y": conch.FP32(-1)})'
        )
    return (_field(declaration, where, "output", annotation, False),), "one"


def _spoken(annotation: Any) -> Any:
    """In `returns=` a bare tensor description will do."""
    return typing.Annotated[Any, annotation] if isinstance(annotation, Tensor) else annotation


def _field(declaration: Declaration, where: str, name: str, annotation: Any, optional: bool) -> Field:
    try:
        field = read_annotation(name, annotation, optional)
    except NotTensor as error:
        raise declaration.refuse(f"{where} {error}") from None
    if isinstance(declaration.batch, Batch):
        if field.form == "scalar":
            raise declaration.refuse(
                f"{where} is one {field.python}, and conch.Batch calls the function for many rows: write "
                f"list[{field.python}], one for each row, or use conch.Rows"
            )
        if not field.dims or field.dims[0] != -1:
            raise declaration.refuse(
                f"{where} has the shape {list(field.dims)}: with conch.Batch the first dimension is the rows of the "
                "batch and must be -1"
            )
    return field


def _check_names(declaration: Declaration, noun: str, fields: Sequence[Field]) -> None:
    seen: set[str] = set()
    for field in fields:
        if field.name in seen:
            raise declaration.refuse(f"'{declaration.function.__name__}' has two {noun}s called '{field.name}'")
        seen.add(field.name)
