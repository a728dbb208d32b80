"""Starts and stops the servers that are compared, and reads what they cost: CPU time, memory, time until ready."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from figures import Counters, Poll, parse_statistics


class ServerError(RuntimeError):
    """A server did not start, or went away. The text ends with what it logged last."""


class Server:
    """One server process on free ports of 127.0.0.1, as a context manager."""

    def __init__(self, name: str, command: Sequence[str], repository: Path, *flags: str, timeout: float = 60.0) -> None:
        self.name = name
        self._again = (name, command, repository, *flags)
        self.http_port, self.grpc_port, metrics_port = _free_ports(3)
        self._log = tempfile.TemporaryFile("w+", prefix=f"{name}-")  # noqa: SIM115
        started = time.monotonic()
        self.process = subprocess.Popen(
            [
                *command,
                f"--model-repository={repository}",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                f"--http-port={self.http_port}",
                f"--grpc-port={self.grpc_port}",
                f"--metrics-port={metrics_port}",
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            #: Seconds from the start of the process to the first 200 of /v2/health/ready.
            self.ready_seconds = self._wait(started, timeout)
        except BaseException:
            self._kill()
            raise

    def url(self, protocol: str) -> str:
        return f"127.0.0.1:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    def counters(self, model: str) -> Counters:
        return parse_statistics(self._json(f"/v2/models/{model}/stats"))

    def cpu_seconds(self) -> float:
        """User and system time of the server and of everything it has started, since each began."""
        return _cpu_seconds(self._tree())

    def watch(self, model: str) -> Watch:
        """Polls the model's counters and the CPU time, from `with` to its end."""
        return Watch(self, model, self._tree())

    def memory(self) -> tuple[float, float]:
        """Megabytes of the process tree: its proportional share (PSS), and the sum of its resident sizes (RSS)."""
        pss = rss = 0.0
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                pss += info.pss
                rss += info.rss
        return pss / 1e6, rss / 1e6

    def check(self) -> None:
        """Raises ServerError if the process is gone."""
        code = self.process.poll()
        if code is not None:
            raise ServerError(f"{self.name} left with exit code {code}\n{self._tail()}")

    def revive(self, *, anyway: bool = False) -> None:
        """Start the server anew if it is gone, or `anyway`. Raises ServerError when that does not work."""
        if anyway or self.process.poll() is not None:
            self._kill()
            self.__init__(*self._again)  # type: ignore[misc]

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def _json(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except OSError as error:
            self.check()
            raise ServerError(f"{self.name} does not answer {path}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"{self.name} answers {path} with {response.status}: {body.decode(errors='replace')}")
        return json.loads(body)

    def _wait(self, started: float, timeout: float) -> float:
        while time.monotonic() - started < timeout:
            self.check()
            connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=5)
            try:
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    return time.monotonic() - started
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.005)
        raise ServerError(f"{self.name} was not ready within {timeout:g} s\n{self._tail()}")

    def _tail(self) -> str:
        self._log.seek(0)
        return "".join(self._log.readlines()[-40:])

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=40)
        self._kill()


class Watch:
    """Polls a server in a thread of its own while a load generator runs."""

    INTERVAL = 0.05

    def __init__(self, server: Server, model: str, processes: Sequence[psutil.Process]) -> None:
        self.polls: list[Poll] = []
        self._server = server
        self._model = model
        self._processes = processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self.INTERVAL):
            with suppress(ServerError):
                before, cpu = time.monotonic(), _cpu_seconds(self._processes)
                requests = self._server.counters(self._model).requests
                self.polls.append(Poll((before + time.monotonic()) / 2, requests, cpu))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
