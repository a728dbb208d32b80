"""What GPUs do, read through NVML in a thread of its own: some calls take milliseconds, and the loop has none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from conch.config.gpus import Gpu
from conch.observe.metrics import join, plain
from conch.types.error import Code, InferError

_log = logging.getLogger("conch")

#: After so many failures in a row a gauge of a GPU is left out until the server is started again, as in Triton.
_FAILURES: Final = 3
_ENERGY: Final = "nv_energy_consumption"

#: Name, kind, help text, how it is read of a device; in Triton's order, with its names, texts and units.
_GAUGES: Final[tuple[tuple[str, str, str, Callable[[Any, Any], float]], ...]] = (
    (
        "nv_gpu_utilization",
        "gauge",
        "GPU utilization rate [0.0 - 1.0)",
        lambda nvml, device: nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100,
    ),
    (
        "nv_gpu_memory_total_bytes",
        "gauge",
        "GPU total memory, in bytes",
        lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).total,
    ),
    (
        "nv_gpu_memory_used_bytes",
        "gauge",
        "GPU used memory, in bytes",
        lambda nvml, device: nvml.nvmlDeviceGetMemoryInfo(device).used,
    ),
    (
        "nv_gpu_power_usage",
        "gauge",
        "GPU power usage in watts",
        lambda nvml, device: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
    ),
    (
        "nv_gpu_power_limit",
        "gauge",
        "GPU power management limit in watts",
        lambda nvml, device: nvml.nvmlDeviceGetPowerManagementLimit(device) / 1000,
    ),
    (
        _ENERGY,
        "counter",
        "GPU energy consumption in joules since the Triton Server started",
        lambda nvml, device: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000,
    ),
)


class Nvml:
    """The GPUs that models use, as NVML knows them. Any thread."""

    def __init__(self, nvml: Any, gpus: Sequence[Gpu]) -> None:
        """`nvml` is nvidia-ml-py's module, initialised."""
        self.module = nvml
        #: CUDA's number -> what NVML calls the GPU, and its handle.
        self.devices: dict[int, tuple[str, Any]] = {}
        for gpu in gpus:
            found = self._find(gpu)
            if found is not None:
                self.devices[gpu.device] = found

    def _find(self, gpu: Gpu) -> tuple[str, Any] | None:
        """Parts of a GPU that MIG makes have names of their own; CUDA does not say which of both it is."""
        said = []
        for prefix in ("GPU-", "MIG-"):
            try:
                return prefix + gpu.uuid, self.module.nvmlDeviceGetHandleByUUID((prefix + gpu.uuid).encode())
            except self.module.NVMLError as error:
                said.append(f"{prefix}{gpu.uuid}: {error}")
        _log.warning("there are no metrics of GPU %d (%s), NVML says of %s", gpu.device, gpu.name, ", of ".join(said))
        return None

    def count(self) -> int:
        """How many GPUs the driver has, whatever is shown to this process and however MIG divides them; 0: unknown."""
        try:
            return int(self.module.nvmlDeviceGetCount())
        except self.module.NVMLError:
            return 0

    def memory(self, device: int) -> tuple[int, int]:
        """Bytes of a GPU in all and in use, by whomever. Raises LookupError where they cannot be read."""
        if device not in self.devices:
            raise LookupError("NVML does not know it")
        try:
            found = self.module.nvmlDeviceGetMemoryInfo(self.devices[device][1])
        except self.module.NVMLError as error:
            raise LookupError(str(error)) from error
        return found.total, found.used


def open_nvml(gpus: Sequence[Gpu]) -> Nvml:
    """Raises LookupError, with the reason, where NVML cannot be asked."""
    try:
        import pynvml  # noqa: PLC0415  only where there are GPUs
    except ImportError:
        raise LookupError("nvidia-ml-py is not installed: pip install 'conch[gpu]'") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise LookupError(f"NVML cannot be used: {error}") from error
    return Nvml(pynvml, gpus)


class GpuGauges:
    """Readings in, a part of the metrics page out; knows what is left out. No threads, no clock."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        #: Gauge and device -> failures in a row.
        self._failed: dict[tuple[str, int], int] = {}
        #: Device -> joules when the server started.
        self._begun: dict[int, float] = {}
        self._values: dict[tuple[str, int], float] = {}

    def read(self) -> None:
        """Ask for every gauge that is not left out."""
        for name, _, _, ask in _GAUGES:
            for device, (uuid, handle) in self._nvml.devices.items():
                failures = self._failed.get((name, device), 0)
                if failures >= _FAILURES:
                    continue
                try:
                    value = ask(self._nvml.module, handle)
                except self._nvml.module.NVMLError as error:
                    self._failed[name, device] = failures + 1
                    if failures + 1 == _FAILURES:
                        self._values.pop((name, device), None)
                        _log.warning("%s of GPU %d (%s) is left out: %s", name, device, uuid, error)
                    continue
                self._failed[name, device] = 0
                if name == _ENERGY:
                    value -= self._begun.setdefault(device, value)
                self._values[name, device] = value

    def render(self) -> bytes:
        values = dict(self._values)
        lines = []
        for name, kind, text, _ in _GAUGES:
            rows = [
                f"{name}{join({'gpu_uuid': uuid})} {plain(values[name, device])}\n"
                for device, (uuid, _) in self._nvml.devices.items()
                if (name, device) in values
            ]
            if rows:
                lines += [f"# HELP {name} {text}\n# TYPE {name} {kind}\n", *rows]
        return "".join(lines).encode()


class GpuWatch:
    """Reads the gauges twice per interval (seconds), as Triton does, until it is stopped."""

    def __init__(self, gauges: GpuGauges, interval: float) -> None:
        self._gauges = gauges
        self._pause = interval / 2
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conch-gpu", daemon=True)

    def start(self) -> None:
        self._gauges.read()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._pause):
            begun = time.monotonic()
            try:
                self._gauges.read()
            except Exception:  # noqa: BLE001  the page shows what was read last
                _log.exception("GPUs could not be read")
            if time.monotonic() - begun > self._pause:
                # A driver that is that slow is not to be asked without a rest.
                self._stopped.wait(self._pause)


def load_limit(limits: Mapping[int, float], nvml: Nvml) -> Callable[[int, str], None]:
    """`--model-load-gpu-limit`: what raises InferError (UNAVAILABLE) when an instance is to be made on a full GPU."""

    def admit(device: int, instance: str) -> None:
        limit = limits.get(device)
        if limit is None:
            return
        try:
            total, used = nvml.memory(device)
        except LookupError as error:
            raise InferError(
                Code.UNAVAILABLE,
                f"can not create model '{instance}': the memory in use of GPU {device} cannot be read: {error}",
                f"leave --model-load-gpu-limit={device}:... out",
            ) from error
        if used > limit * total:
            raise InferError(
                Code.UNAVAILABLE,
                f"can not create model '{instance}': memory limit set for GPU {device} has exceeded, model loading is "
                "rejected.",
                f"{used} of {total} bytes are in use, --model-load-gpu-limit allows {limit:.0%}: unload a model",
            )

    return admit
