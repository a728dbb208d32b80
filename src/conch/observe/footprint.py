"""How much memory processes take, of the machine and of GPUs, as the kernel and the driver count it.

Of GPUs NVML tells what each process takes, by the numbers that processes have outside of all containers: a server in
one may find none of its own, or not be told what they take. Then what the whole GPU holds beyond what it held at the
start is the server's.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from conch.config.gpus import has_context
from conch.config.memory import RAM
from conch.observe.gpu import Nvml

_log = logging.getLogger("conch")
_PROC: Final = Path("/proc")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: The kernel's number for the process namespace that all others lie in (PROC_PID_INIT_INO).
_OUTERMOST: Final = 0xEFFFFFFC
#: Process -> bytes by GPU, as `gpu:<n>`; None where the driver lists the process and not its memory.
GpuUse = Mapping[int, Mapping[str, int | None]]


def resident(pid: int) -> int:
    """The bytes of RAM of one process, its part of what it shares with others (PSS); 0 for one that is gone.

    Where the kernel does not tell that, all that it shares (RSS).
    """
    try:
        with open(_PROC / str(pid) / "smaps_rollup", "rb") as file:  # noqa: PTH123  a third of the time
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        """Not allowed, or not known to this kernel, or gone."""
    try:
        return int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def parents() -> dict[int, int]:
    """Each process's parent."""
    result = {}
    for place in _PROC.iterdir():
        if not place.name.isdigit():
            continue
        try:
            # The name of the program stands in brackets and may hold anything.
            after = (place / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if len(after) > 1:
            result[int(place.name)] = int(after[1])
    return result


def families(parents: Mapping[int, int], heads: Iterable[int]) -> dict[int, list[int]]:
    """For each head the processes that it has started, and they have started, itself included."""
    children: dict[int, list[int]] = {}
    for child, parent in parents.items():
        children.setdefault(parent, []).append(child)
    result = {}
    for head in heads:
        family = [head]
        for each in family:
            family += children.get(each, ())
        result[head] = family
    return result


def contained() -> bool:
    """Whether processes have other numbers here than outside, as in most containers."""
    try:
        return (_PROC / "self/ns/pid").stat().st_ino != _OUTERMOST
    except OSError:
        return False


def untold(
    devices: Iterable[str], use: GpuUse, ours: Collection[int], computing: Collection[str], *, contained: bool
) -> frozenset[str]:
    """Those of `devices` of which `use` does not tell what our processes take: it says nothing of their memory, or
    lists none of them though they use the GPU (`computing`), or may, unseen (`contained`). Pure.
    """
    listed = [use[pid] for pid in use if pid in ours]
    silent = {device for each in listed for device, size in each.items() if size is None}
    told = {device for each in listed for device in each} - silent
    may = silent.union(devices) if contained else silent.union(computing)
    return frozenset(may.intersection(devices) - told)


class Gpus(Protocol):
    """What is read of GPUs, as `gpu:<n>`. Any thread; what a driver does not do is raised."""

    @property
    def devices(self) -> frozenset[str]: ...
    def __call__(self) -> GpuUse: ...
    def computing(self) -> frozenset[str]:
        """Those that this process itself uses."""
        ...

    def grown(self) -> Mapping[str, int]:
        """Bytes of each in use, by whomever, beyond those at the start."""
        ...


class Gauge:
    """Reads what processes take: `ram`, and the GPUs if there are any. Any thread; each call reads anew.

    What the server takes of a GPU in `whole` is what the whole GPU has grown by, and of no other process anything.
    """

    def __init__(self, gpus: Gpus | None = None, *, contained: Callable[[], bool] = contained) -> None:
        self._gpus = gpus
        self._contained = contained()
        #: What was read of the GPUs last, and whether they cannot be read since.
        self._last: tuple[GpuUse, dict[str, int]] = {}, {}
        self._blind = False
        self._told: frozenset[str] = frozenset()

    def server(self) -> dict[str, int]:
        """This process alone."""
        pid = os.getpid()
        use, grown = self._gpu_use()
        return _sum([pid], use, grown) | grown

    def families(self, heads: Iterable[int]) -> dict[int, dict[str, int]]:
        """Each of these processes with all that it has started."""
        use, grown = self._gpu_use()
        return {head: _sum(family, use, grown) for head, family in families(parents(), heads).items()}

    def everything(self) -> dict[str, int]:
        """This process and all that it has started."""
        use, grown = self._gpu_use()
        return _sum(families(parents(), [os.getpid()])[os.getpid()], use, grown) | grown

    def whole(self) -> frozenset[str]:
        """The GPUs that are measured whole."""
        return frozenset(self._last[1])

    def _gpu_use(self) -> tuple[GpuUse, dict[str, int]]:
        """By process, and what the GPUs have grown by that are measured whole."""
        if self._gpus is None:
            return self._last
        try:
            self._last = self._read(self._gpus)
            self._blind = False
        except Exception as error:  # noqa: BLE001  a driver may say anything, and the books are to be kept
            if not self._blind:
                _log.warning("what models take of GPUs cannot be read, what was read last counts: %s", error)
            self._blind = True
        return self._last

    def _read(self, gpus: Gpus) -> tuple[GpuUse, dict[str, int]]:
        use, own = gpus(), os.getpid()
        ours = families(parents(), [own])[own]
        found = untold(gpus.devices, use, ours, gpus.computing(), contained=self._contained)
        if not found:
            return use, {}
        read = gpus.grown()
        grown = {device: read.get(device, 0) for device in found}
        # Before models are loaded there may be nothing to list.
        for device in sorted({device for device, size in grown.items() if size} - self._told):
            self._told |= {device}
            _log.warning(
                "the driver does not say what this server's processes take of %s, as in containers: models count there "
                "with what the whole GPU's memory grows by while they are loaded, whoever takes it", device,
            )  # fmt: skip
        return use, grown


def _sum(pids: Iterable[int], use: GpuUse, whole: Collection[str]) -> dict[str, int]:
    """What these processes take, but of GPUs that are measured `whole`."""
    result = {RAM: 0}
    for pid in pids:
        result[RAM] += resident(pid)
        for device, size in use.get(pid, {}).items():
            if device not in whole:
                result[device] = result.get(device, 0) + (size or 0)
    return result


class GpuReader:
    """Implements `Gpus` by NVML, by the numbers that CUDA and configs know GPUs by. Made before models take any."""

    def __init__(self, nvml: Nvml, has_context: Callable[[int], bool] = has_context) -> None:
        self._nvml = nvml
        self._has_context = has_context
        self._begun: dict[str, int] = {}
        for number in nvml.devices:
            # What cannot be read now counts as if the GPU had been empty.
            with contextlib.suppress(LookupError):
                self._begun[f"gpu:{number}"] = nvml.memory(number)[1]

    @property
    def devices(self) -> frozenset[str]:
        return frozenset([f"gpu:{number}" for number in self._nvml.devices])

    def __call__(self) -> GpuUse:
        result: dict[int, dict[str, int | None]] = {}
        for number, (_, handle) in self._nvml.devices.items():
            device = f"gpu:{number}"
            for process in self._nvml.module.nvmlDeviceGetComputeRunningProcesses(handle):
                mine, size = result.setdefault(process.pid, {}), process.usedGpuMemory
                before = mine.get(device, 0)
                mine[device] = None if size is None or before is None else before + size
        return result

    def computing(self) -> frozenset[str]:
        return frozenset([f"gpu:{number}" for number in self._nvml.devices if self._has_context(number)])

    def grown(self) -> Mapping[str, int]:
        return {
            f"gpu:{number}": max(0, self._nvml.memory(number)[1] - self._begun.get(f"gpu:{number}", 0))
            for number in self._nvml.devices
        }
