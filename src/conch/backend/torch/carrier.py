"""Brings bytes to the device that an instance computes on, and results back, or leaves them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conch.backend.joining import runs, stage
from conch.memory.pinned import Staging, Take
from conch.types.device import Device, OnDevice, Read
from conch.types.tensor import Buffer


class Carrier:
    """Copies are only begun, on the stream that is current; the host's memory that they read and write stays referred
    to until `release`, whatever goes wrong meanwhile.

    `send` and `receive` give the host's memory that copies go through, `read` copies from the device for others.
    """

    def __init__(self, torch: Any, device: Any, place: Device, send: Take, receive: Take, read: Read) -> None:
        self.place = place
        self._torch = torch
        self._device = device
        self._send = send
        self._receive = receive
        self._read = read
        self._in_use: list[Staging] = []

    def join(self, parts: Sequence[Buffer], *, own: bool) -> Any:
        """A flat tensor of UINT8 on the device; with `own` it is nobody else's, and may be written."""
        torch = self._torch
        found = runs(parts, self.place)
        pieces = [torch.from_dlpack(each) if isinstance(each, OnDevice) else self._sent(each) for each in found]
        if len(pieces) == 1:
            return pieces[0].clone() if own and isinstance(found[0], OnDevice) else pieces[0]
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8, device=self._device)

    def bring(self, tensor: Any) -> Any:
        """A tensor of the host's."""
        return tensor.to(self._device)

    def fetch(self, tensor: Any) -> Any:
        """A copy in the host's memory of a tensor of any device."""
        if tensor.device != self._device:
            return tensor.cpu()
        tensor = tensor.contiguous()
        staging = self._receive(tensor.nbytes)
        self._in_use.append(staging)
        host = self._torch.from_numpy(staging).view(tensor.dtype).reshape(tensor.shape)
        return host.copy_(tensor, non_blocking=True)

    def keeps(self, tensor: Any) -> bool:
        """Whether the tensor may stay where it is."""
        return bool(tensor.device == self._device)

    def left(self, tensor: Any) -> OnDevice:
        """A contiguous tensor for others, once it is complete."""
        return OnDevice(self.place, tensor.data_ptr(), tensor.nbytes, tensor, self._read)

    def release(self) -> None:
        """All copies that were begun are done."""
        self._in_use.clear()

    def _sent(self, parts: Sequence[Buffer]) -> Any:
        staging = stage(parts, self._send)
        self._in_use.append(staging)
        return self._torch.from_numpy(staging).to(self._device, non_blocking=True)
