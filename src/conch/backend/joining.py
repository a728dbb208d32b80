"""What backends on GPUs share: the requests' bytes, on the host and on devices, on their way into one input. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from conch.memory.pinned import Staging, Take
from conch.types.device import Device, OnDevice, on_device
from conch.types.tensor import Buffer


def runs(parts: Sequence[Buffer], device: Device) -> list[OnDevice | list[Buffer]]:
    """`parts` in their order: what lies on `device`, and between that lists of what is on the host, or has to be
    brought there because it lies on another device. Empty parts are left out."""
    found = [_near(each, device) for each in parts if len(each)]
    made: list[OnDevice | list[Buffer]] = []
    for there, group in groupby(found, lambda each: isinstance(each, OnDevice)):
        if there:
            made += [each for each in group if isinstance(each, OnDevice)]
        else:
            made.append([each for each in group if not isinstance(each, OnDevice)])
    return made


def stage(parts: Sequence[Buffer], take: Take) -> Staging:
    """`parts`, which are on the host, one after another in memory that `take` gives."""
    staging = take(sum([len(each) for each in parts]))
    end = 0
    for each in parts:
        begin, end = end, end + len(each)
        staging[begin:end] = np.frombuffer(each, np.uint8)
    return staging


def _near(data: Buffer, device: Device) -> Buffer | OnDevice:
    value = on_device(data)
    if value is None:
        return data
    return value if value.device == device else value.host()
