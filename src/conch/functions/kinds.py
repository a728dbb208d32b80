"""How a function's annotations name tensors: `Annotated[np.ndarray, FP32(-1, 3)]`, in short `Array["FP32", -1, 3]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np

from conch.types import dtype

#: bfloat16 has no numpy type, so no function can take it.
DATATYPES: Final = {each.name: each for each in dtype.ALL if each.name != "BF16"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a function sees it; a size of -1 is any. `name` is what clients call an output; empty: as usual."""

    datatype: str
    dims: tuple[int, ...]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.datatype}[{', '.join(map(str, self.dims))}]"


class Kind:
    """A data type. Called with sizes it describes a tensor, for `Annotated`; indexed with them it is an annotation."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *dims: int, name: str = "") -> Tensor:
        for size in dims:
            if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
                raise TypeError(
                    f"conch.{self.name}: a size of a tensor is a whole number from 1, or -1 for any, found {size!r}"
                )
        if not isinstance(name, str):
            raise TypeError(f"conch.{self.name}: name must be a text, found {name!r}")
        return Tensor(self.name, tuple(dims), name)

    def __getitem__(self, dims: int | tuple[int, ...]) -> Any:
        sizes = dims if isinstance(dims, tuple) else (dims,)
        return Annotated[np.ndarray, self(*sizes)]

    def __repr__(self) -> str:
        return f"conch.{self.name}"


class Array:
    """`Array["FP32", -1, 3]`: a numpy array of that data type and shape."""

    def __class_getitem__(cls, parameters: Any) -> Any:
        name, *dims = parameters if isinstance(parameters, tuple) else (parameters,)
        if isinstance(name, Kind):
            name = name.name
        if name not in DATATYPES:
            raise TypeError(f"conch.Array: unknown data type {name!r}, expected one of {', '.join(DATATYPES)}")
        return Annotated[np.ndarray, Kind(name)(*dims)]


BOOL: Final = Kind("BOOL")
UINT8: Final = Kind("UINT8")
UINT16: Final = Kind("UINT16")
UINT32: Final = Kind("UINT32")
UINT64: Final = Kind("UINT64")
INT8: Final = Kind("INT8")
INT16: Final = Kind("INT16")
INT32: Final = Kind("INT32")
INT64: Final = Kind("INT64")
FP16: Final = Kind("FP16")
FP32: Final = Kind("FP32")
FP64: Final = Kind("FP64")
BYTES: Final = Kind("BYTES")
