"""Where an instance computes, and how tensors get there and back."""

from __future__ import annotations

import contextlib
from typing import Any

from conch.backend.api import Placement
from conch.backend.torch.carrier import Carrier
from conch.backend.torch.parameters import TorchPlan
from conch.backend.torch.runtime import runtime
from conch.memory.cuda import reader
from conch.memory.pinned import PinnedPool, pageable
from conch.types.device import gpu
from conch.types.error import InferError, unavailable


def device_name(placement: Placement) -> str | None:
    """`cpu`, `cuda:<n>`, or None where the model decides (KIND_MODEL)."""
    kind = placement.kind.removeprefix("KIND_")
    return {"GPU": f"cuda:{placement.device_id}", "MODEL": None}.get(kind, "cpu")


def check_device(model: str, placement: Placement) -> None:
    """Raises InferError where this PyTorch cannot use the GPU that the instance is to have."""
    name = device_name(placement)
    if name is None or name == "cpu":
        return
    torch = runtime()
    if not torch.cuda.is_available() or placement.device_id >= torch.cuda.device_count():
        raise _no_gpu(model, placement, torch.__version__)


class Cpu:
    """The CPU: tensors are where they are."""

    #: What brings tensors to a device; a CPU needs nothing of it.
    carrier: Carrier | None = None

    def fetch(self, tensor: Any) -> Any:
        """For KIND_MODEL the model's results may be on any device."""
        return tensor.cpu()

    def work(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def finish(self) -> None:
        """All that was fetched is there."""


class Gpu:
    """A GPU, with a stream of the instance's own, so that instances on one GPU overlap.

    Copies go through pinned memory where the config allows and `pool` has room: only such are asynchronous.
    """

    def __init__(self, number: int, plan: TorchPlan, pool: PinnedPool) -> None:
        self._torch = runtime()
        self._device = self._torch.device(f"cuda:{number}")
        self._stream = self._torch.cuda.Stream(device=self._device)
        self._plan = plan
        pool.open(number)
        self.carrier = Carrier(
            self._torch,
            self._device,
            gpu(number),
            pool.take if plan.pinned_input else pageable,
            pool.take if plan.pinned_output else pageable,
            reader(number),
        )

    def fetch(self, tensor: Any) -> Any:
        """A tensor in the host's memory, complete after `finish`."""
        return self.carrier.fetch(tensor)

    @contextlib.contextmanager
    def work(self) -> Any:
        # A process-wide switch; Triton turns it before each run, too.
        self._torch.backends.cudnn.enabled = self._plan.cudnn
        with self._torch.cuda.device(self._device), self._torch.cuda.stream(self._stream):
            try:
                yield
            except BaseException:
                # What the stream still reads must outlive that; an error of the device's comes again and again.
                with contextlib.suppress(Exception):
                    self.finish()
                raise

    def finish(self) -> None:
        try:
            self._stream.synchronize()
        finally:
            # A stream that cannot be waited for copies nothing any more: its device is lost.
            self.carrier.release()
        if self._plan.cache_cleaning:
            self._torch.cuda.empty_cache()


def _no_gpu(model: str, placement: Placement, version: str) -> InferError:
    return unavailable(
        f"unable to load model '{model}', instance '{placement.name}' (KIND_GPU) needs GPU {placement.device_id} and "
        f"this PyTorch ({version}) finds none",
        "install a PyTorch for CUDA and check the driver, or write instance_group [ { kind: KIND_CPU } ]",
    )
