"""Between tensors and what a function takes and gives: numpy arrays, plain Python values and lists of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from conch.functions.kinds import DATATYPES


class ValueRefused(Exception):  # noqa: N818
    """A value is not what the signature says; the text says what it is."""


@dataclass(frozen=True, slots=True)
class Field:
    """One input or output. `dims` are those that the function sees; a size of -1 is any.

    `form` is "array", "scalar" or "list"; of the latter two `python` names the type: str, bytes, int, float, bool.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    form: str
    python: str = ""
    optional: bool = False
    #: What the function calls it, where clients know it by another name.
    attribute: str = ""

    def wire_dims(self, *, batch: bool) -> tuple[int, ...]:
        """The dims in the model's config: without the rows of a batch, and never none (a config cannot say so)."""
        return (self.dims[1:] if batch else self.dims) or (1,)


def decode(field: Field, array: np.ndarray[Any, Any], *, batch: bool = False) -> Any:
    """What the function gets; `array` is one request's (with `batch` the rows of a batch). Raises ValueRefused."""
    if field.form == "array":
        if len(field.dims) == array.ndim:
            return array
        return array.reshape(array.shape[:1] if batch else ())
    values = array.reshape(-1).tolist()
    if field.python == "str":
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise ValueRefused(f"input '{field.name}' is no UTF-8 text: {error.reason}") from None
    if field.form == "list":
        return values
    if len(values) != 1:
        raise ValueRefused(f"input '{field.name}' is one {field.python}, {len(values)} came")
    return values[0]


def encode(field: Field, value: Any, *, rows: int = -1) -> np.ndarray[Any, Any]:
    """The tensor for what a function gave; with `rows` it is a batch of so many. Raises ValueRefused."""
    batch = rows >= 0
    array = _bytes(field, value) if field.datatype == "BYTES" else _numbers(field, value)
    _check_shape(field, array)
    if batch and array.shape[0] != rows:
        raise ValueRefused(f"output '{field.name}' has {array.shape[0]} rows, the batch has {rows}")
    if len(field.dims) == int(batch):
        return array.reshape((rows, 1) if batch else (1,))
    return array


def _numbers(field: Field, value: Any) -> np.ndarray[Any, Any]:
    wanted = DATATYPES[field.datatype].numpy
    # What other libraries' arrays are, numpy knows.
    array = np.asarray(value)
    if array.dtype == wanted:
        return np.ascontiguousarray(array) if array.ndim else array
    if array.size and not np.can_cast(array.dtype, wanted, "same_kind"):
        raise ValueRefused(
            f"output '{field.name}' is declared {field.datatype}, the function gave {_shown(value, array)}"
        )
    if wanted.kind in "iu" and array.size and not np.can_cast(array.dtype, wanted):
        limits = np.iinfo(wanted)
        for extreme in (int(array.min()), int(array.max())):
            if not limits.min <= extreme <= limits.max:
                raise ValueRefused(
                    f"output '{field.name}' is declared {field.datatype}, which cannot hold {extreme} "
                    f"(it goes from {limits.min} to {limits.max})"
                )
    return array.astype(wanted)


def _bytes(field: Field, value: Any) -> np.ndarray[Any, Any]:
    # Never through numpy's own strings: those of fixed width lose zero bytes at the end.
    array = value.astype(object) if isinstance(value, np.ndarray) else np.array(value, dtype=object)
    flat = array.reshape(-1)
    encoded = np.empty(flat.shape, dtype=object)
    for index, element in enumerate(flat):
        if isinstance(element, str):
            encoded[index] = element.encode()
        elif isinstance(element, bytes):
            encoded[index] = element
        else:
            raise ValueRefused(f"output '{field.name}' is declared {_noun(field)}, the function gave {element!r:.80}")
    return encoded.reshape(array.shape)


def _check_shape(field: Field, array: np.ndarray[Any, Any]) -> None:
    same = array.ndim == len(field.dims) and all(
        want in (-1, have) for want, have in zip(field.dims, array.shape, strict=True)
    )
    if not same:
        raise ValueRefused(
            f"output '{field.name}' is declared {_noun(field)}, the function gave the shape {list(array.shape)}"
        )


def _noun(field: Field) -> str:
    if field.form == "array":
        return f"{field.datatype}[{', '.join(map(str, field.dims))}]"
    return field.python if field.form == "scalar" else f"list[{field.python}]"


def _shown(value: Any, array: np.ndarray[Any, Any]) -> str:
    return f"an array of {array.dtype}" if isinstance(value, np.ndarray) else f"{value!r:.80}"
