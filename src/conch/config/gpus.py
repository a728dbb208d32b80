"""Which GPUs this process may use, as CUDA counts them.

The driver is asked, not NVML: it alone knows the order of devices that models' frameworks see, and it has applied
CUDA_VISIBLE_DEVICES (numbers, UUIDs, parts of a GPU by MIG) and MPS already. Asking makes no context and takes no
memory of a GPU.
"""

from __future__ import annotations

import ctypes
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conch.config.server import GpuOptions

#: CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h).
_MAJOR: Final = 75
_MINOR: Final = 76
#: CUDA_ERROR_NO_DEVICE.
_NO_DEVICE: Final = 100
_LIBRARY: Final = "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or the part of one that MIG makes. `device` is the number that CUDA and configs know it by."""

    device: int
    #: 32 hexadecimal digits in five groups, without what tells a GPU ("GPU-") from a part of one ("MIG-").
    uuid: str
    name: str
    #: Compute capability, such as 8.6.
    capability: float
    #: Bytes of memory in all.
    memory: int


class Absent(Exception):  # noqa: N818
    """There is no GPU to use; the text says why.

    `broken`: a driver is there that cannot be used, which is nothing that an operator wants.
    """

    def __init__(self, text: str, *, broken: bool = False) -> None:
        super().__init__(text)
        self.broken = broken


def read_gpus(open_library: Callable[[], Any] = lambda: ctypes.CDLL(_LIBRARY)) -> list[Gpu]:
    """All GPUs of this process, by number. Raises Absent."""
    try:
        library = open_library()
    except OSError:
        raise Absent(f"NVIDIA's driver is not installed ({_LIBRARY} was not found)") from None
    try:
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        found = [_read(library, number) for number in range(count.value)]
    except AttributeError as error:
        raise Absent(f"NVIDIA's driver is too old: {error}", broken=True) from None
    if not found:
        raise Absent("NVIDIA's driver shows no GPU to this process (see CUDA_VISIBLE_DEVICES)")
    return found


def usable(gpus: Sequence[Gpu], options: GpuOptions) -> list[Gpu]:
    """Those that models may use."""
    if not options.enabled:
        return []
    return [gpu for gpu in gpus if gpu.capability >= options.min_compute_capability]


def _read(library: Any, number: int) -> Gpu:
    device, identity, memory = ctypes.c_int(), (ctypes.c_ubyte * 16)(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGet", ctypes.byref(device), number)
    _call(library, "cuDeviceGetName", name, len(name), device)
    # The second version gives the UUID of a part where there is one; drivers before CUDA 11.4 lack it, and MIG's parts.
    ask = "cuDeviceGetUuid_v2" if hasattr(library, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
    _call(library, ask, ctypes.byref(identity), device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_attribute(library, each, device) for each in (_MAJOR, _MINOR))
    return Gpu(
        number,
        str(uuid.UUID(bytes=bytes(identity))),
        name.value.decode("utf-8", "replace"),
        round(major + minor / 10, 1),
        memory.value,
    )


def _attribute(library: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def _call(library: Any, name: str, *arguments: Any) -> None:
    result = getattr(library, name)(*arguments)
    if result:
        none = name == "cuInit" and result == _NO_DEVICE
        raise Absent(f"NVIDIA's driver cannot be used: {name} failed with CUresult {result}", broken=not none)
