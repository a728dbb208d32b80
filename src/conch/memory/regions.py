"""The regions that clients have registered: one map of names for both kinds, as in Triton."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Final

from conch.memory.cuda import CudaRegion, Driver, find_driver
from conch.memory.system import FOLDER, SystemRegion
from conch.types.error import Code, InferError, invalid, not_found, unavailable, unsupported
from conch.types.tensor import Buffer

#: Regions at a time: each has up to two files open, and connections need some too.
_MOST: Final = 4096


class Window:
    """A part of a region that an output is written to. It keeps the region alive, registered or not."""

    __slots__ = ("_offset", "_region", "size")

    def __init__(self, region: SystemRegion | CudaRegion, offset: int, size: int) -> None:
        self._region = region
        self._offset = offset
        self.size = size

    def write(self, data: Buffer) -> None:
        """`data` is no longer than `size`. Any thread."""
        self._region.write(self._offset, data)


class Regions:
    """Registered, looked up and forgotten on the event loop's thread. Errors are InferError in Triton's words.

    Requests keep what they use: a region that is unregistered goes when the last of them has ended.
    """

    def __init__(
        self, *, allowed: bool, folder: str = FOLDER, driver: Callable[[], Driver | None] = find_driver
    ) -> None:
        """`allowed`: clients may register (`--allow-client-shm`)."""
        self._allowed = allowed
        self._folder = folder
        self._driver = driver
        self._most = min(_MOST, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._regions: dict[str, SystemRegion | CudaRegion] = {}

    # ---- what clients register

    def check_allowed(self) -> None:
        """Raises InferError where the operator has not switched shared memory on."""
        if not self._allowed:
            raise unsupported(
                "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
            )

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self._check_new(name)
        self._regions[name] = SystemRegion(name, key, offset, byte_size, self._folder)

    def register_cuda(self, name: str, handle: bytes, device_id: int, byte_size: int) -> None:
        self._check_new(name)
        self._regions[name] = CudaRegion(name, handle, device_id, byte_size, self._driver())

    def unregister_system(self, name: str) -> None:
        """The region of this name, all system regions if it is empty. What is not there is gone already."""
        self.check_allowed()
        self._forget(name, SystemRegion)

    def unregister_cuda(self, name: str) -> None:
        self.check_allowed()
        self._forget(name, CudaRegion)

    def system(self, name: str) -> list[SystemRegion]:
        """The region of this name; all system regions, by name, if it is empty."""
        if not name:
            return [each for _, each in sorted(self._regions.items()) if isinstance(each, SystemRegion)]
        region = self._regions.get(name)
        if isinstance(region, SystemRegion):
            return [region]
        raise _missing(name, "system") if region is None else _other_kind(name, "CUDA", "system")

    def cuda(self, name: str) -> list[CudaRegion]:
        if not name:
            return [each for _, each in sorted(self._regions.items()) if isinstance(each, CudaRegion)]
        region = self._regions.get(name)
        if isinstance(region, CudaRegion):
            return [region]
        raise _missing(name, "cuda") if region is None else _other_kind(name, "system", "CUDA")

    # ---- what requests use

    def read(self, name: str, offset: int, size: int, *, copy: bool = False) -> Buffer:
        """`size` bytes of the region: a view where that is cheaper and `copy` is not asked for."""
        return self._find(name, offset, size).read(offset, size, copy=copy)

    def window(self, name: str, offset: int, size: int) -> Window:
        return Window(self._find(name, offset, size), offset, size)

    def _find(self, name: str, offset: int, size: int) -> SystemRegion | CudaRegion:
        region = self._regions.get(name)
        if region is None:
            raise not_found(f"Unable to find shared memory region: '{name}'", "register it first")
        if not 0 <= offset < region.byte_size:
            raise invalid(f"Invalid offset for shared memory region: '{name}'")
        # Nothing at all at the very start is refused, as Triton refuses it.
        if size < 0 or not 0 < offset + size <= region.byte_size:
            raise invalid(f"Invalid offset + byte size for shared memory region: '{name}'")
        return region

    def _check_new(self, name: str) -> None:
        self.check_allowed()
        if name in self._regions:
            raise InferError(
                Code.ALREADY_EXISTS, f"shared memory region '{name}' already in manager", "unregister it first"
            )
        if len(self._regions) >= self._most:
            raise unavailable(
                f"cannot register shared memory region '{name}': there are {self._most} regions already",
                "unregister regions that are not needed any more, or raise the limit of open files (ulimit -n)",
            )

    def _forget(self, name: str, kind: type[SystemRegion | CudaRegion]) -> None:
        for each in [name] if name else list(self._regions):
            if isinstance(self._regions.get(each), kind):
                del self._regions[each]


def _missing(name: str, kind: str) -> InferError:
    return not_found(f"Unable to find {kind} shared memory region: '{name}'")


def _other_kind(name: str, is_one: str, wanted: str) -> InferError:
    return not_found(f"The region named '{name}' is registered as {is_one} shared memory, not {wanted} shared memory")
