"""Real servers as child processes: started on free ports, waited for, stopped; what they logged is kept."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

#: The commands as a user has them: beside the interpreter that runs the tests.
BIN = Path(sys.executable).parent
CONCH: Sequence[str] = (str(BIN / "conch"), "serve")
TRITONSERVER: Sequence[str] = (str(BIN / "tritonserver"),)


class ServerError(AssertionError):
    """The server did not do what a server does; the text ends with its log."""


#: Ports that the system gives to nobody by itself; every process that runs tests goes round in its own thousand.
_FIRST = 11_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 20 * 1000
_PORTS = itertools.islice(itertools.cycle(range(_FIRST, _FIRST + 1000)), os.getpid() % 1000, None)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different, and not soon given again."""
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as sock, suppress(OSError):
            # As servers do: a port whose connections are still being forgotten is free.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Server:
    """One server on 127.0.0.1; a context manager that leaves no process behind.

    `command` is Conch's (`conch serve REPOSITORY`) unless given; any command that takes Triton's flags will do, the
    repository is then passed as `--model-repository`. Leaving the block stops the server with SIGTERM and, unless an
    error is on its way already, demands exit code 0.
    """

    def __init__(
        self,
        repository: Path | str,
        *flags: str,
        command: Sequence[str] = CONCH,
        env: Mapping[str, str] | None = None,
        timeout: float = 150.0,
    ) -> None:
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        place = [str(repository)] if tuple(command) == tuple(CONCH) else [f"--model-repository={repository}"]
        self.arguments = [
            *command,
            *place,
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
            *flags,
        ]
        self.timeout = timeout
        self._log = tempfile.NamedTemporaryFile(prefix="server-", suffix=".log", delete=False)  # noqa: SIM115
        self._last_log = ""
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            # Its own group: nothing of it survives, whatever it started.
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        """Everything that the server has written so far, stdout and stderr together; also after the end."""
        return self._last_log or Path(self._log.name).read_text(errors="replace")

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        return f"127.0.0.1:{self.metrics_port}"

    def ready_seconds(self) -> float:
        """Waits until `/v2/health/ready` answers 200; the time since the process was started."""
        return self._until("/v2/health/ready", {200})

    def live_seconds(self) -> float:
        """Waits until the server answers HTTP at all, ready or not."""
        return self._until("/v2/health/live", {200, 400})

    def _until(self, path: str, good: set[int]) -> float:
        deadline = self.started + self.timeout
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=20)
                connection.request("GET", path)
                status = connection.getresponse().status
                connection.close()
                if status in good:
                    return time.monotonic() - self.started
            except OSError:
                pass
            if self.process.poll() is not None:
                raise ServerError(f"the server left with exit code {self.process.returncode}\n{self.log}")
            if time.monotonic() > deadline:
                raise ServerError(f"{path} was not among {good} within {self.timeout:g} s\n{self.log}")
            time.sleep(0.01)

    def wait(self, timeout: float = 100.0) -> int:
        """The exit code, once the process has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server still runs after {timeout:g} s\n{self.log}") from None

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stacks(self) -> str:
        """Asks the server and its workers what their threads are doing; the log with what they say after a second."""
        with suppress(psutil.Error):
            server = psutil.Process(self.process.pid)
            for process in [server, *server.children(recursive=True)]:
                process.send_signal(signal.SIGUSR1)
            time.sleep(1.0)
        return self.log

    def kill(self) -> None:
        """Ends the whole process group at once, also what an already dead server left behind; safe to call twice."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self, *, check: bool = True) -> int:
        """SIGTERM, then the exit code, which must be 0 when `check` is set."""
        self.signal()
        try:
            code = self.wait()
        finally:
            self.kill()
        if check and code != 0:
            raise ServerError(f"the server was stopped and left with exit code {code}\n{self.log}")
        return code

    def __enter__(self) -> Self:
        try:
            self.ready_seconds()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop(check=kind is None)
        finally:
            self.close()

    def close(self) -> None:
        """Kills what still runs and removes the log's file; safe to call twice."""
        self.kill()
        if self._log.closed:
            return
        self._last_log = self.log
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)
