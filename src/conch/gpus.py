"""The GPUs of one server, from finding them to the metrics page."""

from __future__ import annotations

import logging
from collections.abc import Callable

from conch.config.gpus import Absent, Gpu, cut_short, read_gpus, usable, visible_devices
from conch.config.server import GpuOptions, ServerOptions
from conch.observe.gpu import GpuGauges, GpuWatch, Nvml, load_limit, open_nvml
from conch.types.error import invalid

_log = logging.getLogger("conch")


class Gpus:
    """Nothing is asked of a driver before `find`."""

    def __init__(
        self, options: ServerOptions, read: Callable[[], list[Gpu]] | None = None, visible: str | None = None
    ) -> None:
        """`visible` is CUDA_VISIBLE_DEVICES, the process's own unless `read` is given."""
        self._options = options
        self._visible = visible_devices() if read is None else visible
        self._read = read or (lambda: read_gpus(visible=self._visible))
        #: How many the driver shows, also those that models may not use.
        self._shown = 0
        self._found: list[Gpu] = []
        self._nvml: Nvml | None = None
        self._gauges: GpuGauges | None = None
        self._watch: GpuWatch | None = None
        #: See `registry.crew.Equipment`.
        self.admit: Callable[[int, str], None] | None = None

    def find(self) -> list[Gpu]:
        """Those that models may use. Raises InferError where limits were given that cannot be kept."""
        options = self._options.gpu
        if options.enabled:
            try:
                read = self._read()
            except Absent as absent:
                level = logging.WARNING if absent.broken else logging.DEBUG
                _log.log(level, "models run on the CPU: %s", absent)
            else:
                self._shown = len(read)
                self._found = usable(read, options)
                if missed := cut_short(self._visible, len(read)):
                    _log.warning("%s", missed)
                self._tell_dropped(read)
        for gpu in self._found:
            _log.info("GPU %d: %s, compute capability %.1f", gpu.device, gpu.name, gpu.capability)
        self._limit()
        if not self._found and options.pinned_bytes != GpuOptions().pinned_bytes:
            _log.warning("--pinned-memory-pool-byte-size has no effect: there is no GPU for models")
        return self._found

    def _tell_dropped(self, read: list[Gpu]) -> None:
        for gpu in read:
            if gpu not in self._found:
                _log.info(
                    "GPU %d: %s is not used, its compute capability %.1f is below the least supported of %.1f",
                    gpu.device, gpu.name, gpu.capability, self._options.gpu.min_compute_capability,
                )  # fmt: skip

    def watch(self) -> None:
        """Begin to read what the metrics page shows, if it is to show GPUs."""
        options = self._options.metrics
        if not (options.gpu and self._found):
            return
        nvml = self._open()
        if nvml is None:
            return
        for gpu in self._found:
            if gpu.device in nvml.devices:
                _log.info("Collecting metrics for GPU %d: %s", gpu.device, gpu.name)
        if self._visible is None and nvml.count() > self._shown:
            _log.info(
                "the driver has %d GPUs and shows %d to this process: of those that MIG divides it may show one part "
                "alone, others are for servers of their own with CUDA_VISIBLE_DEVICES=MIG-<uuid> (nvidia-smi -L)",
                nvml.count(), self._shown,
            )  # fmt: skip
        self._gauges = GpuGauges(nvml)
        self._watch = GpuWatch(self._gauges, options.interval_ms / 1000)
        self._watch.start()

    @property
    def names(self) -> dict[int, str]:
        """Those on the metrics page, by number."""
        if self._gauges is None or self._nvml is None:
            return {}
        return {device: name for device, (name, _) in self._nvml.devices.items()}

    def page(self) -> bytes:
        return b"" if self._gauges is None else self._gauges.render()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.stop()

    def _limit(self) -> None:
        limits = self._options.gpu.load_limits
        known = {gpu.device for gpu in self._found}
        for device in sorted(limits.keys() - known):
            _log.warning("--model-load-gpu-limit=%d:... has no effect: there is no such GPU for models", device)
        if not limits.keys() & known:
            return
        nvml = self._open()
        if nvml is None:
            raise invalid(
                "--model-load-gpu-limit cannot be kept: the memory of GPUs cannot be read",
                "pip install 'conch[gpu]', or leave the flag out",
            )
        self.admit = load_limit(limits, nvml)

    def _open(self) -> Nvml | None:
        if self._nvml is None:
            try:
                self._nvml = open_nvml(self._found)
            except LookupError as error:
                _log.warning("there are no metrics of GPUs: %s", error)
        return self._nvml
