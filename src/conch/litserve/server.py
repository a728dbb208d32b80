"""LitServe's `LitServer`: serves one or several `LitAPI`s over HTTP."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from conch.config.gpus import Absent, read_gpus
from conch.library import Server
from conch.library.bound import Bound
from conch.library.ending import serve_until
from conch.litserve.api import LitAPI
from conch.litserve.face import Endpoint, FaceOptions, LitFace
from conch.litserve.program import LitProgram, config
from conch.service.api import DataPlane
from conch.transport.bridge import Bridge
from conch.types.error import unsupported


class LitServer:
    """Copies of the model run in threads of this process, `workers_per_device` on each device."""

    def __init__(
        self,
        lit_api: LitAPI | Sequence[LitAPI],
        accelerator: str = "auto",
        devices: str | int | Sequence[int] = "auto",
        workers_per_device: int = 1,
        timeout: float | bool = 30,
        healthcheck_path: str = "/health",
        info_path: str = "/info",
        model_metadata: dict[str, Any] | None = None,
        max_payload_size: int | None = None,
        track_requests: bool = False,
        fast_queue: bool = False,
        max_batch_size: int | None = None,
        batch_timeout: float = 0.0,
        stream: bool = False,
        api_path: str | None = None,
        **unknown: Any,
    ) -> None:
        for name, value in unknown.items():
            if value is not None:
                raise unsupported(f"LitServer({name}=...) is not supported by conch.litserve")
        for name, value in (("fast_queue", fast_queue), ("track_requests", track_requests)):
            if value:
                warnings.warn(f"LitServer({name}=...) has no effect with conch.litserve", stacklevel=2)
        self.apis = [lit_api] if isinstance(lit_api, LitAPI) else list(lit_api)
        if not self.apis:
            raise ValueError("LitServer needs a LitAPI, found none")
        for api in self.apis:
            # Older programs say here what newer ones say of the API.
            if max_batch_size is not None:
                api.max_batch_size, api.batch_timeout = max_batch_size, batch_timeout
            api.stream = api.stream or stream
            api.api_path = api_path or api.api_path
            api.request_timeout = timeout
            api.check()
        paths = [each.api_path for each in self.apis]
        if len(set(paths)) < len(paths):
            raise ValueError(f"several APIs have the same api_path: {', '.join(paths)}")
        for name, path in (("healthcheck_path", healthcheck_path), ("info_path", info_path)):
            if not path.startswith("/"):
                raise ValueError(f"{name} must begin with '/', found '{path}'")
        self.devices = _devices(accelerator, devices)
        self.workers_per_device = workers_per_device
        self.timeout = timeout
        self._health_path, self._info_path = healthcheck_path, info_path
        self._max_payload = max_payload_size or 0
        self._info = {
            "model": model_metadata,
            "server": {
                "devices": self.devices,
                "workers_per_device": workers_per_device,
                "timeout": timeout,
                "stream": self.apis[0].stream,
                "max_payload_size": max_payload_size,
                "track_requests": track_requests,
            },
        }
        self._server: Server | None = None
        self._ended = threading.Event()
        #: The port really bound, once it runs.
        self.port = 0

    def run(self, host: str = "0.0.0.0", port: int | str = 8000, **options: Any) -> None:  # noqa: S104  LitServe's
        """Serve until SIGINT or SIGTERM, or `stop` in another thread."""
        self.start(host, port, **options)
        serve_until(self._ended, self.stop)

    def start(self, host: str = "0.0.0.0", port: int | str = 8000, **options: Any) -> None:  # noqa: S104
        """Serve, and go on. Raises RuntimeError when it does already, OSError when the port is taken."""
        if self._server is not None:
            raise RuntimeError(f"the server runs already, at port {self.port}")
        self._ended.clear()
        for name in sorted(options.keys() - {"log_level"}):
            warnings.warn(f"LitServer.run({name}=...) has no effect with conch.litserve", stacklevel=3)
        workers = [device for device in self.devices for _ in range(self.workers_per_device)]
        names = [_name(each, place) for place, each in enumerate(self.apis)]
        bound = [
            Bound(config(each, name, len(workers)), LitProgram(each, workers))
            for each, name in zip(self.apis, names, strict=True)
        ]
        server = Server(functions=bound, id="litserve").start()
        wait = 0.0 if self.timeout in (False, -1) else float(self.timeout)
        endpoints = [
            Endpoint(each.api_path, name, each.max_batch_size > 1, each.stream, wait, each.health)
            for each, name in zip(self.apis, names, strict=True)
        ]
        key = os.environ.get("LIT_SERVER_API_KEY", "")
        options_ = FaceOptions(host, int(port), self._health_path, self._info_path, self._info, self._max_payload, key)

        def face(data: DataPlane, bridge: Bridge) -> LitFace:
            return LitFace(options_, endpoints, data, bridge)

        try:
            self.port = server.listen(face, host)
        except BaseException:
            server.stop()
            raise
        self._server = server

    def stop(self) -> None:
        self._ended.set()
        server, self._server = self._server, None
        if server is not None:
            server.stop()


def _name(api: LitAPI, place: int) -> str:
    """What the model is called in metrics."""
    kept = "".join([each if each.isalnum() else "_" for each in api.api_path.strip("/")])
    return kept or f"api_{place}"


def _devices(accelerator: str, devices: str | int | Sequence[int]) -> list[str]:
    """Raises ValueError for accelerators that are not there, and for what names no devices."""
    if isinstance(devices, str) and devices != "auto":
        if not devices.isdecimal():
            raise ValueError(f"devices must be 'auto', a number or a list of numbers, found '{devices}'")
        devices = int(devices)
    if accelerator not in ("auto", "cpu", "cuda", "gpu"):
        raise ValueError(f"accelerator must be auto, cpu, cuda or gpu, found '{accelerator}'")
    found: list[int] = []
    if accelerator != "cpu":
        reason = ""
        try:
            found = [gpu.device for gpu in read_gpus()]
        except Absent as absent:
            reason = str(absent)
        if not found and accelerator != "auto":
            raise ValueError(f"accelerator='{accelerator}': {reason}")
    if not found:
        return ["cpu"]
    if isinstance(devices, int):
        found = found[:devices]
    elif not isinstance(devices, str):
        found = list(devices)
    return [f"cuda:{device}" for device in found]
