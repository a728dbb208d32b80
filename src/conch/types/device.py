"""A tensor's bytes where they were computed: on a device, until somebody needs them on the host."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final, cast

from conch.types.tensor import Buffer

#: A device as DLPack writes it: its type and its number among those of the type.
Device = tuple[int, int]
#: Copies so many bytes from an address on the device to the host; any thread.
Read = Callable[[int, int], Buffer]

#: DLPack's DLDeviceType.
CPU: Final = 1
CUDA: Final = 2


def gpu(number: int) -> Device:
    """The GPU that CUDA counts as `number`."""
    return CUDA, number


class OnDevice:
    """`size` bytes at `address` on `device`, all written: nothing that computes them is still under way.

    Inside an ensemble it stands where the wire bytes of a tensor would: row-major, elements little-endian, never BYTES.
    `owner` keeps the memory alive; whoever reads it keeps this object until its own work on the device is done. It is
    read only. As a DLPack exporter it is a flat row of bytes; `len` and `bytes` are those of the copy on the host.
    """

    __slots__ = ("_host", "_read", "address", "device", "owner", "size")

    def __init__(self, device: Device, address: int, size: int, owner: object, read: Read) -> None:
        self.device = device
        self.address = address
        self.size = size
        self.owner = owner
        self._read = read
        self._host: Buffer | None = None

    def host(self) -> Buffer:
        """The bytes on the host: copied when they are first asked for. Blocks; raises what the device's driver does."""
        found = self._host
        if found is None:
            found = self._host = self._read(self.address, self.size) if self.size else b""
        return found

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return bytes(self.host())

    def __getitem__(self, part: slice) -> OnDevice:
        """Some of the bytes, where they are."""
        begin, end, _ = part.indices(self.size)
        return OnDevice(self.device, self.address + begin, max(0, end - begin), self.owner, self._read)

    def __dlpack_device__(self) -> Device:
        return self.device

    def __dlpack__(self, *, stream: object = None, max_version: object = None) -> Any:
        """A capsule of `size` elements of UINT8. The bytes are complete, so no stream has to wait for another."""
        return _capsule(self)

    def __repr__(self) -> str:
        return f"OnDevice({self.device}, {self.size} bytes)"


def as_buffer(value: OnDevice) -> Buffer:
    """`value` as what it stands for. Only for who knows that the reader can take it."""
    return cast("Buffer", value)


def on_device(data: object) -> OnDevice | None:
    """What stands for `data`, where that is on a device; None for what is on the host."""
    return data if type(data) is OnDevice else None


def to_host(data: Buffer) -> Buffer:
    """`data` on the host, copied if it is not there."""
    value = on_device(data)
    return data if value is None else value.host()


class _Managed(ctypes.Structure):
    """DLManagedTensor of DLPack 0.x (dlpack.h), with its DLTensor's fields in line."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_UINT: Final = 1
_NAME: Final = b"dltensor"
#: What consumers hold: address of a managed tensor -> all that has to live as long as it does.
_lent: Final[dict[int, tuple[object, ...]]] = {}
_api: Final = ctypes.pythonapi
_capsule_new: Final = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_capsule_is_valid: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_capsule_pointer: Final = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


def _delete(managed: int) -> None:
    """The consumer needs it no more."""
    _lent.pop(managed, None)


def _forget(capsule: int) -> None:
    """The capsule goes: one that was consumed has another name, and its tensor a deleter to call."""
    if _capsule_is_valid(capsule, _NAME):
        _lent.pop(_capsule_pointer(capsule, _NAME), None)


#: A consumer may delete from a thread without the GIL, which such a function takes; capsules go with the GIL held.
_deleter: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)
_destructor: Final = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_forget)


def _capsule(value: OnDevice) -> Any:
    shape = (ctypes.c_int64 * 1)(value.size)
    managed = _Managed(
        value.address, *value.device, 1, _UINT, 8, 1, ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)), None, 0, None,
        ctypes.cast(_deleter, ctypes.c_void_p),
    )  # fmt: skip
    address = ctypes.addressof(managed)
    _lent[address] = (managed, shape, value)
    return _capsule_new(address, _NAME, ctypes.cast(_destructor, ctypes.c_void_p))
