"""The room's values: what is exported, and what it is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conch.adopt.api import Refusal

Array = np.ndarray[Any, Any]
#: Inputs by name -> outputs by name, in order.
Call = Callable[[Mapping[str, Array]], dict[str, Array]]


class ExportError(Refusal):
    """What was given cannot be exported."""


@dataclass(frozen=True, slots=True)
class Written:
    """An exported model: its one file, and what config.pbtxt says of it."""

    filename: str
    content: bytes
    backend: str
    platform: str = ""
    #: Further files beside it: name -> content.
    more: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far outputs may be apart: `absolute` plus `relative` times the size of the value."""

    relative: float
    absolute: float
