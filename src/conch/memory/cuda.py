"""Memory of GPUs, that of other processes too, through the driver library that comes with every NVIDIA GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from conch.types.error import InferError, internal, invalid
from conch.types.tensor import Buffer

#: Bytes of a cudaIpcMemHandle_t.
HANDLE_SIZE: Final = 64
_LAZY_PEER_ACCESS: Final = 1
#: Pinned memory is so for every GPU.
_PORTABLE: Final = 1


class Driver(Protocol):
    """What regions need of CUDA. `device` is a number, an address an integer. Raises CudaError."""

    def open(self, device: int, handle: bytes) -> int: ...
    def close(self, device: int, address: int) -> None: ...
    def read(self, device: int, address: int, size: int) -> bytearray: ...
    def write(self, device: int, address: int, data: Buffer) -> None: ...
    def finish(self, device: int) -> None: ...


class CudaError(Exception):
    """A call of the driver's failed: its name and CUresult."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_SIZE),)


class CudaDriver:
    """`Driver` over libcuda. Any thread: each call has the device's primary context, the one that frameworks use, and
    leaves the thread's own as it was.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Raises CudaError or AttributeError where the library cannot be used."""
        self._library = library
        #: Device -> its primary context.
        self._contexts: dict[int, ctypes.c_void_p] = {}
        address, size = ctypes.c_uint64, ctypes.c_size_t
        for name, arguments in (
            ("cuInit", (ctypes.c_uint,)),
            ("cuDeviceGet", (ctypes.POINTER(ctypes.c_int), ctypes.c_int)),
            ("cuDevicePrimaryCtxRetain", (ctypes.POINTER(ctypes.c_void_p), ctypes.c_int)),
            ("cuCtxPushCurrent_v2", (ctypes.c_void_p,)),
            ("cuCtxPopCurrent_v2", (ctypes.POINTER(ctypes.c_void_p),)),
            ("cuIpcOpenMemHandle_v2", (ctypes.POINTER(address), _Handle, ctypes.c_uint)),
            ("cuIpcCloseMemHandle", (address,)),
            ("cuMemcpyDtoH_v2", (ctypes.c_void_p, address, size)),
            ("cuMemcpyHtoD_v2", (address, ctypes.c_void_p, size)),
            ("cuMemcpyDtoD_v2", (address, address, size)),
            ("cuStreamSynchronize", (ctypes.c_void_p,)),
            ("cuMemHostAlloc", (ctypes.POINTER(ctypes.c_void_p), size, ctypes.c_uint)),
            ("cuMemFreeHost", (ctypes.c_void_p,)),
        ):
            function = getattr(library, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int
        self._call("cuInit", 0)

    def open(self, device: int, handle: bytes) -> int:
        address = ctypes.c_uint64()
        with self._on(device):
            self._call(
                "cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS
            )
        return address.value

    def close(self, device: int, address: int) -> None:
        with self._on(device):
            self._call("cuIpcCloseMemHandle", address)

    def read(self, device: int, address: int, size: int) -> bytearray:
        data = bytearray(size)
        if size:
            into = (ctypes.c_ubyte * size).from_buffer(data)
            with self._on(device):
                self._call("cuMemcpyDtoH_v2", ctypes.addressof(into), address, size)
        return data

    def write(self, device: int, address: int, data: Buffer) -> None:
        """`data` is read when it returns, but may arrive later; see `finish`."""
        raw = bytes(data)
        if raw:
            with self._on(device):
                self._call("cuMemcpyHtoD_v2", address, raw, len(raw))

    def copy(self, device: int, address: int, begin: int, size: int) -> None:
        """Begin to copy `size` bytes of the device from `begin` to `address`; see `finish`."""
        if size:
            with self._on(device):
                self._call("cuMemcpyDtoD_v2", address, begin, size)

    def finish(self, device: int) -> None:
        """Wait for what `copy` and `write` have begun."""
        with self._on(device):
            self._call("cuStreamSynchronize", None)

    def host_alloc(self, device: int, size: int) -> int:
        """The address of `size` bytes of the host's memory that all GPUs copy from and to by themselves."""
        address = ctypes.c_void_p()
        with self._on(device):
            self._call("cuMemHostAlloc", ctypes.byref(address), size, _PORTABLE)
        return address.value or 0

    def host_free(self, device: int, address: int) -> None:
        with self._on(device):
            self._call("cuMemFreeHost", address)

    @contextlib.contextmanager
    def _on(self, device: int) -> Iterator[None]:
        context = self._contexts.get(device)
        if context is None:
            number, context = ctypes.c_int(), ctypes.c_void_p()
            self._call("cuDeviceGet", ctypes.byref(number), device)
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), number)
            self._contexts[device] = context
        self._call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            raise CudaError(f"{name} failed with CUresult {result}")


@functools.cache
def find_driver() -> CudaDriver | None:
    """The machine's CUDA; None where there is none. Asked for once: GPUs do not come later."""
    try:
        return CudaDriver(ctypes.CDLL("libcuda.so.1"))
    except (OSError, AttributeError, CudaError):
        return None


def reader(device: int) -> Callable[[int, int], Buffer]:
    """Copies so many bytes from an address on GPU `device` to the host. Blocks; raises CudaError."""

    def read(address: int, size: int) -> Buffer:
        driver = find_driver()
        if driver is None:
            raise CudaError("libcuda.so.1 cannot be used")
        return driver.read(device, address, size)

    return read


class CudaRegion:
    """`byte_size` bytes of GPU memory of another process; opened here, closed when nothing refers to it any more.

    Models of this server compute from the memory of the host, so every use is a copy over the bus, and blocks for
    that long.
    """

    __slots__ = ("__weakref__", "_address", "_driver", "byte_size", "device_id", "name")

    def __init__(self, name: str, handle: bytes, device_id: int, byte_size: int, driver: Driver | None) -> None:
        if driver is None:
            raise invalid(
                f"failed to register CUDA shared memory region: '{name}', GPUs not supported",
                "this machine has no CUDA driver; system shared memory works everywhere",
            )
        if len(handle) != HANDLE_SIZE or not 0 <= device_id < 1 << 31 or byte_size <= 0:
            raise _invalid_args("a handle has 64 bytes, a device is no negative number, a size is not 0")
        try:
            address = driver.open(device_id, handle)
        except CudaError as error:
            raise _invalid_args(str(error)) from None
        self.name = name
        self.device_id = device_id
        self.byte_size = byte_size
        self._driver = driver
        self._address = address
        weakref.finalize(self, _close, driver, device_id, address)

    def read(self, offset: int, size: int, *, copy: bool) -> Buffer:
        try:
            return self._driver.read(self.device_id, self._address + offset, size)
        except CudaError as error:
            raise internal(f"failed to read from CUDA shared memory region '{self.name}'", str(error)) from None

    def write(self, offset: int, data: Buffer) -> None:
        try:
            self._driver.write(self.device_id, self._address + offset, data)
            # The copy's last step may be under way, and the other process shares no stream with us.
            self._driver.finish(self.device_id)
        except CudaError as error:
            raise internal(f"failed to write to CUDA shared memory region '{self.name}'", str(error)) from None


def _invalid_args(hint: str) -> InferError:
    return invalid("failed to register shared memory region: invalid args", hint)


def _close(driver: Driver, device: int, address: int) -> None:
    with contextlib.suppress(CudaError):
        driver.close(device, address)
