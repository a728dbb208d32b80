"""Typed functions as models: `@conch.model` over numpy arrays and plain Python values. Needs numpy, nothing else."""

from __future__ import annotations

from conch.functions.declare import Batch, Rows, model
from conch.functions.kinds import (
    BOOL,
    BYTES,
    FP16,
    FP32,
    FP64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Array,
)

#: What `import conch` offers to a file with functions.
__all__ = [
    "BOOL",
    "BYTES",
    "FP16",
    "FP32",
    "FP64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "Array",
    "Batch",
    "Rows",
    "model",
]
