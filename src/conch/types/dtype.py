"""The tensor data types of the KServe v2 protocol, under all their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np


@dataclass(frozen=True, eq=False)
class DataType:
    """One data type. There is exactly one object per type, so `is` compares them.

    `name` is the protocol's name (`FP32`), `number` the value of the config enum (`TYPE_FP32` is 11), `size` the bytes
    per element (0 for BYTES, whose elements vary) and `numpy` the little-endian storage type. BF16 has no numpy type:
    it is stored as the upper 16 bits of an FP32, in `uint16`. BYTES is `object` (elements of `bytes`).
    """

    name: str
    number: int
    size: int
    numpy: np.dtype[Any]

    @property
    def config_name(self) -> str:
        """The name in config.pbtxt, such as `TYPE_FP32` (`TYPE_STRING` for BYTES)."""
        return "TYPE_STRING" if self.number == 13 else f"TYPE_{self.name}"

    def __repr__(self) -> str:
        return self.name


BOOL: Final = DataType("BOOL", 1, 1, np.dtype("?"))
UINT8: Final = DataType("UINT8", 2, 1, np.dtype("u1"))
UINT16: Final = DataType("UINT16", 3, 2, np.dtype("<u2"))
UINT32: Final = DataType("UINT32", 4, 4, np.dtype("<u4"))
UINT64: Final = DataType("UINT64", 5, 8, np.dtype("<u8"))
INT8: Final = DataType("INT8", 6, 1, np.dtype("i1"))
INT16: Final = DataType("INT16", 7, 2, np.dtype("<i2"))
INT32: Final = DataType("INT32", 8, 4, np.dtype("<i4"))
INT64: Final = DataType("INT64", 9, 8, np.dtype("<i8"))
FP16: Final = DataType("FP16", 10, 2, np.dtype("<f2"))
FP32: Final = DataType("FP32", 11, 4, np.dtype("<f4"))
FP64: Final = DataType("FP64", 12, 8, np.dtype("<f8"))
BYTES: Final = DataType("BYTES", 13, 0, np.dtype("O"))
BF16: Final = DataType("BF16", 14, 2, np.dtype("<u2"))

ALL: Final = (
    BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BYTES, BF16,
)  # fmt: skip
BY_NAME: Final = {t.name: t for t in ALL}
BY_NUMBER: Final = {t.number: t for t in ALL}
BY_CONFIG_NAME: Final = {t.config_name: t for t in ALL}
