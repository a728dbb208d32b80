"""Which GPUs this process may use, as CUDA counts them.

The driver is asked, not NVML: it alone knows the order of devices that models' frameworks see, and it has applied
CUDA_VISIBLE_DEVICES (numbers, UUIDs, parts of a GPU by MIG) and MPS already. Asking makes no context and takes no
memory of a GPU.
"""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conch.config.server import GpuOptions

#: CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h).
_MAJOR: Final = 75
_MINOR: Final = 76
#: CUDA_ERROR_NO_DEVICE.
_NO_DEVICE: Final = 100
_LIBRARY: Final = "libcuda.so.1"
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
#: What schedulers of clusters write for "none" where CUDA would look for a GPU of that name.
_NO_GPUS: Final = "NoDevFiles"
#: CUresult -> how it is mended, for those that operators meet.
_MENDS: Final = {
    34: "LD_LIBRARY_PATH leads to the stub that is for linking: take that folder out",
    802: "start nvidia-fabricmanager, machines with NVSwitch need it",
    803: "the driver was updated while it was loaded: restart the machine",
    804: "the library is newer than the driver, and this GPU allows no such mixture: update the driver",
    999: "load the kernel's module nvidia_uvm (nvidia-modprobe -u)",
    **dict.fromkeys(range(805, 810), "MPS refuses this process: see its control daemon's log, or stop it"),
}


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


def read_gpus(
    open_library: Callable[[], Any] = lambda: ctypes.CDLL(_LIBRARY),
    visible: str | None = None,
    nodes: Path = Path("/dev"),
) -> list[Gpu]:
    """All GPUs of this process, by number. Raises Absent.

    `visible` is CUDA_VISIBLE_DEVICES as the driver has it, and `nodes` where devices are, both only to say why there
    is no GPU.
    """
    try:
        library = open_library()
    except OSError as error:
        if "No such file" in str(error):
            raise Absent(f"NVIDIA's driver is not installed ({_LIBRARY} was not found)") from None
        raise Absent(f"NVIDIA's driver cannot be loaded: {error}", broken=True) from None
    try:
        result = library.cuInit(0)
        if result == _NO_DEVICE:
            raise nothing_shown(visible, nodes)
        _check(library, "cuInit", result)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        found = [_read(library, number) for number in range(count.value)]
    except AttributeError as error:
        raise Absent(f"NVIDIA's driver is too old: {error}", broken=True) from None
    if not found:
        raise nothing_shown(visible, nodes)
    return found


def has_context(device: int, open_library: Callable[[], Any] = lambda: ctypes.CDLL(_LIBRARY)) -> bool:
    """Whether this process computes on a GPU. Asking makes no context; where it cannot be asked it does not."""
    number, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
    try:
        library = open_library()
        failed = library.cuDeviceGet(ctypes.byref(number), device) or library.cuDevicePrimaryCtxGetState(
            number, ctypes.byref(flags), ctypes.byref(active)
        )
    except (OSError, AttributeError):
        return False
    return not failed and bool(active.value)


def visible_devices() -> str | None:
    """CUDA_VISIBLE_DEVICES; None where it is not set."""
    return os.environ.get(_VISIBLE)


def named(visible: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES asks for: numbers, UUIDs, parts by MIG; with -1 one writes that none follows."""
    wanted: list[str] = []
    for each in visible.split(","):
        entry = each.strip()
        if not entry or entry.startswith("-") or entry == _NO_GPUS:
            break
        wanted.append(entry)
    return wanted


def cut_short(visible: str | None, shown: int) -> str:
    """One sentence if the driver shows fewer GPUs than are asked for, else nothing."""
    wanted = named(visible or "")
    if len(wanted) <= shown:
        return ""
    return (
        f"{_VISIBLE}={visible} names {len(wanted)} GPUs and the driver shows {shown}: it stops at an entry that it "
        "does not know or has seen before, and may show one part of MIG alone; nvidia-smi -L lists all names"
    )


def nothing_shown(visible: str | None, nodes: Path) -> Absent:
    """Why there may be no GPU where there is a driver, which is well if nobody wants one or the machine has none."""
    none = "NVIDIA's driver shows no GPU to this process"
    if visible is not None and not named(visible):
        return Absent(f"{none}: {_VISIBLE} is '{visible}'")
    devices = sorted([*nodes.glob("nvidia[0-9]*"), *nodes.glob("nvidiactl"), *nodes.glob("nvidia-uvm")])
    closed = [str(each) for each in devices if not os.access(each, os.R_OK | os.W_OK)]
    if closed:
        return Absent(f"{none}, which may not open {', '.join(closed)}: give its user the right to", broken=True)
    if visible is not None:
        return Absent(f"{none}: {_VISIBLE}={visible} names none that it has; nvidia-smi -L lists them", broken=True)
    if any(each.name[-1].isdigit() for each in devices):
        return Absent(f"{none}, though {devices[0]} is there: see what nvidia-smi -L lists", broken=True)
    return Absent(none)


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
    _check(library, name, getattr(library, name)(*arguments))


def _check(library: Any, name: str, result: int) -> None:
    if result:
        mend = f"; {_MENDS[result]}" if result in _MENDS else ""
        raise Absent(f"NVIDIA's driver cannot be used: {name} failed with {_said(library, result)}{mend}", broken=True)


def _said(library: Any, result: int) -> str:
    """A CUresult with the driver's own words for it, where it has some."""
    text = ctypes.c_char_p()
    ask = getattr(library, "cuGetErrorString", None)
    if ask is None or ask(result, ctypes.byref(text)) or not text.value:
        return f"CUresult {result}"
    return f"CUresult {result} ({text.value.decode('utf-8', 'replace')})"
