"""What one annotation says: a tensor, a plain value or a list of them, or a structure whose fields are tensors."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from conch.functions.kinds import DATATYPES, Tensor
from conch.functions.values import Field

#: Python's own types and the data type that each travels as.
PLAIN: Final = {str: "BYTES", bytes: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}
_EXPECTED: Final = (
    'expected conch.Array["FP32", -1, 3] (or Annotated[np.ndarray, conch.FP32(-1, 3)]), str, bytes, int, float, bool, '
    "or a list of those"
)


class NotTensor(Exception):  # noqa: N818
    """The annotation stands for no tensor; the text continues a sentence that names the place."""


@dataclass(frozen=True, slots=True)
class Part:
    """A field of a structure."""

    name: str
    annotation: Any
    required: bool


def read_annotation(name: str, annotation: Any, optional: bool) -> Field:
    """Raises NotTensor."""
    annotation, nullable = _without_none(annotation)
    tensor, annotation = _described(annotation)
    if tensor is not None:
        return Field(tensor.name or name, tensor.datatype, tensor.dims, "array", "", optional or nullable, name)
    optional = optional or nullable
    if annotation in PLAIN:
        return Field(name, PLAIN[annotation], (), "scalar", annotation.__name__, optional, name)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list and arguments:
        element = _described(arguments[0])[1]
        if element in PLAIN:
            return Field(name, PLAIN[element], (-1,), "list", element.__name__, optional, name)
    if annotation is np.ndarray:
        raise NotTensor(f"is an array of unknown data type and shape, {_EXPECTED}")
    if origin is np.ndarray and len(arguments) == 2:
        return _numpy(name, arguments, optional)
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    raise NotTensor(f"is annotated as {shown}, {_EXPECTED}")


def _numpy(name: str, arguments: tuple[Any, ...], optional: bool) -> Field:
    """`np.ndarray[tuple[int, int], np.dtype[np.float32]]`: data type and rank are known."""
    shape, kind = arguments
    scalar = typing.get_args(kind)
    datatype = None
    if scalar and isinstance(scalar[0], type):
        found = np.dtype(scalar[0])
        datatype = next((each for each in DATATYPES.values() if each.numpy == found), None)
    if datatype is None:
        raise NotTensor(f"is an array of a data type that tensors do not have, {_EXPECTED}")
    sizes = typing.get_args(shape)
    if Ellipsis in sizes or typing.get_origin(shape) is not tuple:
        raise NotTensor(f'is an array of unknown shape: write conch.Array["{datatype.name}", -1] with all dimensions')
    return Field(name, datatype.name, (-1,) * len(sizes), "array", "", optional, name)


def fields_of(annotation: Any) -> list[Part] | None:
    """The fields of a dataclass, NamedTuple, TypedDict or pydantic model; None for anything else."""
    if not isinstance(annotation, type):
        return None
    hints = typing.get_type_hints(annotation, include_extras=True)
    if dataclasses.is_dataclass(annotation):
        return [
            Part(
                each.name,
                hints[each.name],
                each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING,
            )
            for each in dataclasses.fields(annotation)
            if each.init
        ]
    if issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        defaults = annotation._field_defaults  # type: ignore[attr-defined]
        return [Part(name, hints.get(name, Any), name not in defaults) for name in annotation._fields]
    if typing.is_typeddict(annotation):
        required: frozenset[str] = vars(annotation)["__required_keys__"]
        return [Part(name, _without_marks(hint), name in required) for name, hint in hints.items()]
    known = getattr(annotation, "model_fields", None)
    if isinstance(known, dict):
        return [Part(name, hints[name], info.is_required()) for name, info in known.items()]
    return None


def constraint(annotation: Any) -> Callable[[Any], Any] | None:
    """What pydantic makes of an annotation with pydantic's constraints in it; None for those without."""
    if not _constrained(annotation):
        return None
    from pydantic import TypeAdapter  # noqa: PLC0415  only who has such annotations has it

    check: Callable[[Any], Any] = TypeAdapter(annotation).validate_python
    return check


def _constrained(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Annotated:
        base, *notes = typing.get_args(annotation)
        ours = any(isinstance(note, Tensor) for note in notes)
        known = any(type(note).__module__.partition(".")[0] in ("pydantic", "annotated_types") for note in notes)
        return (known and not ours) or _constrained(base)
    return any(_constrained(each) for each in typing.get_args(annotation) if each is not Ellipsis)


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """`X | None` is an optional X."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(annotation) if each is not type(None)]
        if len(others) == 1:
            return others[0], True
    return annotation, False


def _without_marks(annotation: Any) -> Any:
    """`NotRequired[X]` of a TypedDict is X."""
    if typing.get_origin(annotation) in (typing.Required, typing.NotRequired):
        return typing.get_args(annotation)[0]
    return annotation


def _described(annotation: Any) -> tuple[Tensor | None, Any]:
    """The tensor that an `Annotated` names, if it does, and the type below."""
    if typing.get_origin(annotation) is not typing.Annotated:
        return None, annotation
    base, *notes = typing.get_args(annotation)
    return next((note for note in notes if isinstance(note, Tensor)), None), base
