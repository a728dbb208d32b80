"""Servers in programs that signals interrupt: `python -m support.interrupted NAME` plays one such program.

A signal that came a moment too late would end the process that runs the tests, and nobody would know why.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import conch
from conch.backend.api import Placement
from conch.library import ending
from conch.library.bound import Bound
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import FP32
from support.gate import Gate
from support.until import until


class Sleepy:
    """A program whose load is interrupted."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def open(self, placement: Placement) -> Sleepy:
        self.gate.wait()
        return self

    def run(self, calls: object) -> None: ...

    def close(self) -> None: ...


def start() -> None:
    """Ctrl-C while a model loads."""
    gate = Gate()
    config = ModelConfig(name="m")
    config.input.add(name="x", data_type=FP32.number, dims=[1])
    config.output.add(name="y", data_type=FP32.number, dims=[1])

    def interrupt() -> None:
        assert gate.entered.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        threading.Event().wait(0.2)
        gate.open.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    made = conch.Server(functions=[Bound(config, Sleepy(gate))], http_port=0)
    assert interrupted(made.start)
    thread.join(20)
    assert not made.live()
    assert made._place().loop.is_closed()


def stop() -> None:
    """Ctrl-C while a request of a model that does not end is waited for."""
    gate = Gate()
    made = conch.Server(functions=[gate.slow()], exit_timeout_secs=60).start()
    made.model("slow").submit({"x": 1.0})
    assert gate.entered.wait(60)

    def interrupt() -> None:
        until(lambda: not made.live())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    folder = made._programs.repository
    assert interrupted(made.stop)
    thread.join(20)
    assert not folder.exists()
    gate.open.set()
    until(lambda: not any(each.name == "conch" for each in threading.enumerate()))
    assert made._place().loop.is_closed()


def waiting() -> None:
    """A second signal that comes while the first is still being told (the thread may hold the event's lock), and those
    that come while the server stops."""
    ended = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def send() -> None:
        until(lambda: signal.getsignal(signal.SIGTERM) is not before)
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        with ended._cond:  # type: ignore[attr-defined]
            # As in the thread that is inside of `wait`; it would not come back.
            handler(signal.SIGTERM, None)
        assert ended.wait(20)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    stopped: list[bool] = []

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        stopped.append(True)

    ending.serve_until(ended, end)
    thread.join(20)
    assert not thread.is_alive()
    assert stopped == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def interrupted(call: object) -> bool:
    """Whether the call ends with KeyboardInterrupt."""
    assert callable(call)
    try:
        call()
    except KeyboardInterrupt:
        return True
    return False


if __name__ == "__main__":
    # Programs in the background of a script ignore it from the start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {"start": start, "stop": stop, "waiting": waiting}[sys.argv[1]]()
