"""How much memory processes take, of the machine and of GPUs, as the kernel and the driver count it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from conch.config.memory import RAM
from conch.observe.gpu import Nvml

_log = logging.getLogger("conch")
_PROC: Final = Path("/proc")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
#: Process -> bytes by GPU, as `gpu:<n>`.
GpuUse = Mapping[int, Mapping[str, int]]


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


class Gauge:
    """Reads what processes take: `ram`, and the GPUs if there are any. Any thread; each call reads anew."""

    def __init__(self, gpus: Callable[[], GpuUse] | None = None) -> None:
        self._gpus = gpus
        #: What was read of the GPUs last, and whether they cannot be read since.
        self._last: GpuUse = {}
        self._blind = False

    def server(self) -> dict[str, int]:
        """This process alone."""
        pid = os.getpid()
        return self._sum([pid], self._gpu_use())

    def families(self, heads: Iterable[int]) -> dict[int, dict[str, int]]:
        """Each of these processes with all that it has started."""
        use = self._gpu_use()
        return {head: self._sum(family, use) for head, family in families(parents(), heads).items()}

    def everything(self) -> dict[str, int]:
        """This process and all that it has started."""
        return self.families([os.getpid()])[os.getpid()]

    def _gpu_use(self) -> GpuUse:
        if self._gpus is None:
            return {}
        try:
            self._last = self._gpus()
            self._blind = False
        except Exception as error:  # noqa: BLE001  a driver may say anything, and the books are to be kept
            if not self._blind:
                _log.warning("what models take of GPUs cannot be read, what was read last counts: %s", error)
            self._blind = True
        return self._last

    def _sum(self, pids: Iterable[int], use: GpuUse) -> dict[str, int]:
        result = {RAM: 0}
        for pid in pids:
            result[RAM] += resident(pid)
            for device, size in use.get(pid, {}).items():
                result[device] = result.get(device, 0) + size
        return result


class GpuReader:
    """What each process takes of each GPU, by the numbers that CUDA and configs know it by. Any thread."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._untold = False

    @property
    def devices(self) -> frozenset[str]:
        """The GPUs that are read."""
        return frozenset([f"gpu:{number}" for number in self._nvml.devices])

    def __call__(self) -> GpuUse:
        result: dict[int, dict[str, int]] = {}
        for number, (name, handle) in self._nvml.devices.items():
            for process in self._nvml.module.nvmlDeviceGetComputeRunningProcesses(handle):
                use = process.usedGpuMemory
                if use is None:
                    self._tell(number, name)
                mine = result.setdefault(process.pid, {})
                mine[f"gpu:{number}"] = mine.get(f"gpu:{number}", 0) + (use or 0)
        return result

    def _tell(self, number: int, name: str) -> None:
        """In some containers, with MIG and under WDDM the driver does not say."""
        if not self._untold:
            self._untold = True
            _log.warning(
                "the driver does not say what processes take of GPU %d (%s): models count there with what their "
                "parameter conch_memory says, and else with nothing", number, name,
            )  # fmt: skip
