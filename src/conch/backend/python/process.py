"""A worker process as the server sees it: started, spoken to, watched and ended."""

from __future__ import annotations

import logging
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from conch.backend.api import Models
from conch.backend.python import channel
from conch.backend.python.boot import BOOT, diagnosis
from conch.backend.python.channel import Area
from conch.backend.python.door import Door
from conch.backend.python.settings import Settings
from conch.backend.python.undoing import pair, pipe, undone
from conch.observe.custom import Families
from conch.types.error import InferError, internal, unavailable

_LOG = logging.getLogger("conch.model")
_LEVELS = (logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG)
_PACKAGE = Path(__file__).parents[2]
#: So many pieces of 64 KiB are read of a worker's stderr at a time.
_CHUNKS = 4


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is needed to start the worker of an instance, again and again. `start` is the START message."""

    model: str
    instance: str
    python: str
    start: dict[str, Any]
    settings: Settings
    models: Models | None = None
    metrics: Families | None = None
    #: The CPUs that the worker is confined to; empty for all.
    cores: frozenset[int] = frozenset()
    #: The worker's environment variables; None for the server's.
    variables: Mapping[str, str] | None = None
    #: So long after a call of a model to another nobody goes to sleep (`vigil`), in nanoseconds; 0: everybody may.
    spin_ns: int = 0


@dataclass(slots=True)
class Call:
    """A message of the calls socket. `descriptor` is -1 or a file that came with it, which the receiver closes."""

    kind: int
    flags: int
    sequence: int
    index: int
    meta: bytes
    data: bytes
    descriptor: int


class WorkerProcess:
    """One process and what joins us to it. Not thread-safe: its owner hands it from thread to thread."""

    def __init__(self, launch: Launch) -> None:
        """Starts the process; `begin` then talks to it. Raises InferError, and has freed all then."""
        self.launch = launch
        self.last_lines: deque[str] = deque(maxlen=20)
        self._partial = b""
        self.pidfd = -1
        try:
            with ExitStack() as undo, ExitStack() as given:
                self._make(undo, given)
                undo.pop_all()
        except OSError as error:
            raise internal(f"Failed to start the worker of model instance '{launch.instance}': {error}") from error

    def _make(self, undo: ExitStack, given: ExitStack) -> None:
        """`undo` frees what is ours, `given` what the process alone needs once it runs."""
        launch, growth = self.launch, self.launch.settings.shm_growth
        sizes = [launch.settings.shm_default] * 2 + [mmap.PAGESIZE] * (channel.OUTPUTS - 1)
        self.inputs, *self.outputs = [undone(undo, Area.make(size, growth)) for size in sizes]
        self.main, theirs = pair(undo, given)
        self.calls, their_calls = pair(undo, given)
        asks, their_asks = pair(undo, given)
        asks.setblocking(False)
        self.door = undone(undo, Door(asks, launch.models, launch.metrics, launch.instance, launch.spin_ns))
        life, self._life = pipe(given, undo)
        self.stderr, their_stderr = pipe(undo, given)
        outputs = [area.descriptor for area in self.outputs]
        passed = [theirs.fileno(), their_calls.fileno(), their_asks.fileno(), life, self.inputs.descriptor, *outputs]
        self._process = subprocess.Popen(  # noqa: S603  our own program
            [launch.python, "-c", BOOT, str(_PACKAGE), launch.instance, *map(str, [growth, *passed])],
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stderr=their_stderr,
            start_new_session=True,
            env=launch.variables,
        )
        undo.callback(self._process.wait)
        undo.callback(self._process.kill)
        self.pidfd = os.pidfd_open(self._process.pid)
        undo.callback(os.close, self.pidfd)
        for descriptor in (self.main.fileno(), self.calls.fileno(), self.stderr):
            os.set_blocking(descriptor, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Send START and wait for the answer (its kind is under the key `kind`). On failure the process is ended."""
        try:
            return self._begin(cancelled)
        except InferError:
            raise
        except BaseException:
            self.stop(0.0)
            raise

    def _begin(self, cancelled: Callable[[], bool]) -> dict[str, Any]:
        raw = msgspec.json.encode(self.launch.start)
        self.inputs.reserve(len(raw))[: len(raw)] = raw
        # An interpreter that cannot even begin has hung up already; what it wrote to its stderr is read below.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.main.send(bytes((channel.START,)) + len(raw).to_bytes(8, "little"))
        timeout = self.launch.settings.start_timeout
        packet = self._await_answer(time.monotonic() + timeout, cancelled)
        if packet is None:
            self.stop(0.0)
            raise unavailable(
                f"Timed out occurred while waiting for the stub process of '{self.launch.instance}': model.py and its "
                f"initialize took more than stub-timeout-seconds={timeout:g}",
                "raise --backend-config=python,stub-timeout-seconds",
            )
        if not packet:
            text = self.bury()
            raise diagnosis(self.launch.model, self.launch.python, self.last_lines) or internal(text)
        size = int.from_bytes(packet[1:9], "little")
        content = msgspec.json.decode(bytes(self.outputs[0].view(size)[:size]))
        if packet[0] == channel.REFUSED:
            self.stop(1.0)
            raise InferError(internal("").code, content["text"], content["details"])
        return {"kind": packet[0], "content": content}

    def read_main(self) -> bytes | None:
        """The next packet; empty when the worker has hung up, None when there is none now."""
        try:
            return self.main.recv(channel.PACKET)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def read_calls(self, most: int = sys.maxsize) -> Iterator[Call]:
        """The waiting messages of the calls socket, no more than `most`; log lines are dealt with here."""
        head = channel.CALL_HEAD
        for _ in range(most):
            try:
                packet, descriptors, _, _ = socket.recv_fds(self.calls, channel.PACKET, 1)
            except (BlockingIOError, OSError):
                return
            if not packet:
                return
            kind, flags, sequence, index, meta, data = head.unpack_from(packet)
            if kind == channel.LOG:
                self._log(flags, packet[head.size :])
                continue
            body = packet[head.size :]
            descriptor = descriptors[0] if descriptors else -1
            if kind in {channel.ANSWER, channel.RESPONSES} and descriptor >= 0:
                with open(descriptor, "rb") as file:  # noqa: PTH123  a descriptor, no path
                    file.seek(0)
                    body = file.read()
                descriptor = -1
            yield Call(kind, flags, sequence, index, body[:meta], body[meta : meta + data], descriptor)

    def read_stderr(self) -> bool:
        """Pass on what the worker wrote to its stderr, so much that one that never stops holds up nobody. False when no
        more will come."""
        for _ in range(_CHUNKS):
            try:
                chunk = os.read(self.stderr, 65_536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not chunk:
                return False
            lines = (self._partial + chunk).split(b"\n")
            self._partial = lines.pop()[-4096:]
            self.last_lines.extend(line.decode("utf-8", "replace") for line in lines if line.strip())
            try:
                os.write(2, chunk)
            except OSError:
                """The server's own stderr is closed."""
        return True

    def bury(self) -> str:
        """The process has exited: reap it, end what it left running, free everything. Says what happened."""
        self._wait(5.0)
        self.read_stderr()
        for call in self.read_calls():
            if call.descriptor >= 0:
                os.close(call.descriptor)
        self._reap()
        lines = [*self.last_lines, *([self._partial.decode("utf-8", "replace")] if self._partial.strip() else [])]
        self.release()
        text = (
            f"Stub process '{self.launch.instance}' is not healthy. The worker process of model "
            f"'{self.launch.model}' {ending(self._process.returncode)}"
        )
        return f"{text} Last lines of its stderr:\n" + "\n".join(lines) if lines else text

    def stop(self, grace: float) -> None:
        """Ask the worker to finalize, wait up to `grace` seconds, then end it. Blocks; afterwards all is freed."""
        if grace:
            try:
                self.main.send(bytes((channel.STOP,)))
            except OSError:
                grace = 0.0
        if not self._wait(grace):
            if grace:
                _LOG.warning(
                    "worker of model instance '%s' did not finalize within %g s: ending it", self.launch.instance, grace
                )
            self._signal(signal.SIGTERM)
            if not self._wait(1.0 if grace else 0.2):
                self._signal(signal.SIGKILL)
                self._wait(10.0)
        self.read_stderr()
        self._reap()
        self.release()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def release(self) -> None:
        for sock in (self.main, self.calls):
            sock.close()
        self.door.close()
        for descriptor in (self._life, self.stderr, self.pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._life = self.stderr = self.pidfd = -1
        for area in (self.inputs, *self.outputs):
            area.close()

    def _await_answer(self, deadline: float, cancelled: Callable[[], bool]) -> bytes | None:
        poll = select.poll()
        for descriptor in (self.main.fileno(), self.calls.fileno(), self.door.fileno(), self.stderr, self.pidfd):
            poll.register(descriptor, select.POLLIN)
        while time.monotonic() < deadline and not cancelled():
            for descriptor, event in poll.poll(100):
                if not event & select.POLLIN or (descriptor == self.stderr and not self.read_stderr()):
                    poll.unregister(descriptor)
            for _ in self.read_calls():
                """Nothing but log lines is said before the model is loaded."""
            self.door.heed()
            packet = self.read_main()
            if packet:
                return packet
            if packet is not None and self._wait(5.0):
                return b""
        return None

    def _wait(self, seconds: float) -> bool:
        """Whether the process exits within `seconds`; what it says meanwhile is read, so that it can get there."""
        if self.pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        deadline = time.monotonic() + seconds
        step = 1
        while True:
            if poll.poll(step):
                return True
            if time.monotonic() >= deadline:
                return False
            step = min(step * 2, 100)
            self.read_stderr()
            if self.main.fileno() >= 0:
                self.door.heed()
            for call in self.read_calls():
                if call.descriptor >= 0:
                    os.close(call.descriptor)
            if self.main.fileno() >= 0:
                self.read_main()

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except OSError:
            """It has exited by itself."""

    def _reap(self) -> None:
        # The worker leads a session of its own: what it started and left behind ends with it. Its number cannot have
        # been given to anyone else before it is reaped.
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except OSError:
            """Nothing was left."""
        self._process.wait()

    def _log(self, level: int, raw: bytes) -> None:
        try:
            file, line, message = msgspec.json.decode(raw)
        except (msgspec.DecodeError, ValueError) as error:
            # A line that is lost is no reason to lose what comes behind it.
            _LOG.warning("a log line of model instance '%s' cannot be read: %s", self.launch.instance, error)
            return
        level = _LEVELS[level] if level < len(_LEVELS) else logging.INFO
        if _LOG.isEnabledFor(level):
            _LOG.handle(_LOG.makeRecord(_LOG.name, level, file, line, message, (), None))


def ending(code: int) -> str:
    """How a process ended, from its return code as `subprocess` gives it."""
    if code >= 0:
        return f"exited with code {code}."
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = " (out of memory is the usual reason)" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}."


def verbose() -> bool:
    """Whether the server's log shows verbose messages of models."""
    return _LOG.isEnabledFor(logging.DEBUG)
