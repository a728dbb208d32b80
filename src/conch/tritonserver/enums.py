"""Triton's enumerations."""

from __future__ import annotations

from enum import Enum, IntEnum, IntFlag


class ModelControlMode(Enum):
    NONE = "none"
    POLL = "poll"
    EXPLICIT = "explicit"


class RateLimitMode(Enum):
    OFF = "off"
    EXEC_COUNT = "execution_count"


class LogFormat(Enum):
    DEFAULT = "default"
    ISO8601 = "ISO8601"


class MetricFormat(Enum):
    PROMETHEUS = 0


class DataType(IntEnum):
    INVALID = 0
    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    BYTES = 13
    BF16 = 14


class MemoryType(IntEnum):
    CPU = 0
    CPU_PINNED = 1
    GPU = 2


class InstanceGroupKind(IntEnum):
    AUTO = 0
    CPU = 1
    GPU = 2
    MODEL = 3


class ModelBatchFlag(IntFlag):
    """Whether the first dimension of a model's tensors is the batch's."""

    UNKNOWN = 1
    FIRST_DIM = 2


class ModelTxnPropertyFlag(IntFlag):
    ONE_TO_ONE = 1
    DECOUPLED = 2
