"""Runs a session on memory that is given by address: BF16, which numpy lacks, and tensors that lie on a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from conch.backend.joining import runs
from conch.backend.onnx.session import runtime
from conch.types.device import Device, OnDevice, as_buffer
from conch.types.dtype import BF16, DataType
from conch.types.tensor import Buffer

Array = np.ndarray[Any, Any]
#: TensorProto.DataType.BFLOAT16, a type that numpy lacks.
_ONNX_BF16: Final = 16


class Copier(Protocol):
    """What bound inputs need of a device's driver. Raises what that raises."""

    def read(self, device: int, address: int, size: int) -> Buffer: ...
    def write(self, device: int, address: int, data: Buffer) -> None: ...
    def copy(self, device: int, address: int, begin: int, size: int) -> None: ...
    def finish(self, device: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Lying:
    """A tensor on a device, in memory that `owner` keeps alive."""

    shape: tuple[int, ...]
    address: int
    owner: Any


class Placed:
    """The device that a session computes on: `name` and `number` are ONNX Runtime's for it, `place` is DLPack's."""

    def __init__(self, place: Device, name: str, copier: Copier) -> None:
        self.place = place
        self.name = name
        self.number = place[1]
        self._copier = copier

    def input(self, datatype: DataType, shape: tuple[int, ...], parts: Sequence[Buffer]) -> Lying | None:
        """The input whose bytes are `parts`, joined on the device; None where no part lies there."""
        found = runs(parts, self.place)
        if not any(isinstance(each, OnDevice) for each in found):
            return None
        if len(found) == 1 and isinstance(found[0], OnDevice):
            return Lying(shape, found[0].address, found[0])
        element = _ONNX_BF16 if datatype is BF16 else datatype.numpy
        joined = runtime().OrtValue.ortvalue_from_shape_and_type(list(shape), element, self.name, self.number)
        self._fill(joined.data_ptr(), found)
        return Lying(shape, joined.data_ptr(), joined)

    def output(self, datatype: DataType, value: Any, session: Any) -> Left:
        """An output that was left on the device; the session's allocator outlives it."""
        shape = tuple(value.shape())
        size = math.prod(shape) * datatype.size
        # A tuple lets go of its last one first.
        owner = (session, value)
        return Left(shape, OnDevice(self.place, value.data_ptr() if size else 0, size, owner, self._read))

    def _fill(self, address: int, found: Sequence[OnDevice | list[Buffer]]) -> None:
        for each in found:
            if isinstance(each, OnDevice):
                self._copier.copy(self.number, address, each.address, each.size)
                address += each.size
                continue
            for data in each:
                self._copier.write(self.number, address, data)
                address += len(data)
        # The session's stream does not wait for the copies.
        self._copier.finish(self.number)

    def _read(self, address: int, size: int) -> Buffer:
        return self._copier.read(self.number, address, size)


@dataclass(frozen=True, slots=True)
class Left:
    """An output that stays where it is."""

    shape: tuple[int, ...]
    value: OnDevice

    @property
    def data(self) -> Buffer:
        return as_buffer(self.value)


def run_bound(
    session: Any,
    options: Any,
    feed: Mapping[str, Array | Lying],
    names: Sequence[str],
    types: Mapping[str, DataType],
    placed: Placed | None = None,
    stays: frozenset[str] = frozenset(),
) -> list[Array | Left]:
    """The outputs `names`, those of `stays` left on the device of `placed`. BF16 arrays are `uint16` patterns."""
    binding = session.io_binding()
    for name, given in feed.items():
        element = _ONNX_BF16 if types.get(name) is BF16 else None
        if isinstance(given, Lying):
            assert placed is not None
            kind = element or types[name].numpy
            binding.bind_input(name, placed.name, placed.number, kind, list(given.shape), given.address)
        elif element is not None:
            binding.bind_input(name, "cpu", 0, element, list(given.shape), given.ctypes.data)
        else:
            binding.bind_cpu_input(name, given)
    for name in names:
        if placed is not None and name in stays:
            binding.bind_output(name, placed.name, placed.number)
        else:
            binding.bind_output(name)
    session.run_with_iobinding(binding, options)
    if stays:
        # The config may have told runs not to wait for the device.
        binding.synchronize_outputs()
        # Outputs keep their binding, and so would all that it has copied of the inputs to the device.
        binding.clear_binding_inputs()
    return [
        _given(value, types[name], session, placed if name in stays else None)
        for name, value in zip(names, binding.get_outputs(), strict=True)
    ]


def _given(value: Any, datatype: DataType, session: Any, placed: Placed | None) -> Array | Left:
    if placed is not None:
        return placed.output(datatype, value, session)
    return _bf16_view(value) if datatype is BF16 else value.numpy()


def _bf16_view(value: Any) -> Array:
    """The bit patterns of a BF16 OrtValue, without a copy; the array keeps the value alive."""
    shape = tuple(value.shape())
    size = 2 * math.prod(shape)
    if size == 0:
        return np.empty(shape, dtype=BF16.numpy)
    memory = (ctypes.c_char * size).from_address(value.data_ptr())
    memory._owner = value
    return np.frombuffer(memoryview(memory), dtype=BF16.numpy).reshape(shape)
