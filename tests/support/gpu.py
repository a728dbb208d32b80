"""GPUs that are there, for tests marked `gpu`; and ones that are not, as the driver and NVML would show them."""

from __future__ import annotations

import ctypes
import functools
import uuid
from types import SimpleNamespace
from typing import Any

from conch.config.gpus import Absent, Gpu, read_gpus


@functools.cache
def missing() -> str:
    """Why there is no GPU here; empty where there is one."""
    try:
        read_gpus()
    except Absent as absent:
        return str(absent)
    return ""


class FakeDriver:
    """libcuda with these GPUs: name, capability (major, minor), bytes. `fails` is a call that does, with its result."""

    def __init__(self, *gpus: tuple[str, int, int, int], fails: tuple[str, int] = ("", 0)) -> None:
        self.gpus = gpus
        self.fails = fails
        #: The GPUs that this process uses.
        self.computing: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(type(self), f"do_{name}"):
            raise AttributeError(f"undefined symbol: {name}")
        call = getattr(self, f"do_{name}")
        return lambda *arguments: self.fails[1] if self.fails[0] == name else call(*arguments) or 0

    def do_cuInit(self, flags: int) -> None:  # noqa: N802
        assert flags == 0

    def do_cuGetErrorString(self, result: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {802: b"system not yet initialized", 999: b"unknown error"}.get(result)
        return 0 if text._obj.value else 1

    def do_cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.gpus)

    def do_cuDeviceGet(self, device: Any, number: int) -> None:  # noqa: N802
        device._obj.value = number

    def do_cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> None:  # noqa: N802
        name.value = self.gpus[device.value][0].encode()

    def do_cuDeviceGetUuid_v2(self, identity: Any, device: ctypes.c_int) -> None:  # noqa: N802
        identity._obj[:] = uuid.UUID(int=device.value + 1).bytes

    def do_cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> None:  # noqa: N802
        size._obj.value = self.gpus[device.value][3]

    def do_cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> None:  # noqa: N802
        value._obj.value = self.gpus[device.value][{75: 1, 76: 2}[attribute]]

    def do_cuDevicePrimaryCtxGetState(self, device: ctypes.c_int, flags: Any, active: Any) -> None:  # noqa: N802
        active._obj.value = device.value in self.computing


class NVMLError(Exception):
    """NVML's."""


class FakeNvml:
    """nvidia-ml-py's module; `values` are what its calls give (an exception is raised), `known` the names of GPUs."""

    NVMLError = NVMLError

    def __init__(self, *known: str, **values: Any) -> None:
        self.known = known
        self.values = {
            "UtilizationRates": SimpleNamespace(gpu=25),
            "MemoryInfo": SimpleNamespace(total=17_179_869_184, used=1 << 30),
            "PowerUsage": 58_954,
            "PowerManagementLimit": 300_000,
            "TotalEnergyConsumption": 9_000_000,
            **values,
        }

    def nvmlDeviceGetHandleByUUID(self, name: bytes) -> str:  # noqa: N802
        if name.decode() not in self.known:
            raise NVMLError("Not Found")
        return name.decode()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """GPUs as they are built, divided or not."""
        return int(self.values.get("Count", len(self.known)))

    def __getattr__(self, name: str) -> Any:
        def call(handle: str) -> Any:
            value = self.values[name.removeprefix("nvmlDeviceGet")]
            if isinstance(value, Exception):
                raise value
            return value

        return call


def gpu(device: int, capability: float = 8.0) -> Gpu:
    return Gpu(device, str(uuid.UUID(int=device + 1)), f"NVIDIA Test {device}", capability, 1 << 34)
