"""A real Redis as a child process, on a port of its own, without files."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from types import TracebackType
from typing import Self

import pytest
import redis

from support.server import free_ports

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class RedisServer:
    """A context manager; `stop` and `start` may be called in between, the port stays. Starting empties it."""

    def __init__(self, *arguments: str, tls: bool = False) -> None:
        (self.port,) = free_ports(1)
        ports = ("--port", "0", "--tls-port", str(self.port)) if tls else ("--port", str(self.port))
        self._arguments = (*ports, *arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--cache-config=redis,host=127.0.0.1", f"--cache-config=redis,port={self.port}")

    def client(self, **more: object) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, **more)  # type: ignore[arg-type]

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--daemonize", "no", *self._arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.01)
        raise AssertionError("redis-server does not listen")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
