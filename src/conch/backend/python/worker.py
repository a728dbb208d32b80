"""The worker process: loads one `model.py` and executes the batches that the server sends, until the server is gone."""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import gc
import importlib
import inspect
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from conch.backend.python import channel
from conch.backend.python.asks import Asks
from conch.backend.python.bls import Caller
from conch.backend.python.calls import Calls, runtime
from conch.backend.python.channel import Area
from conch.backend.python.errors import Refusal, details, printable, words
from conch.backend.python.execute import Executor


def main(arguments: list[str]) -> None:
    """`arguments` are the growth of the areas in bytes and the descriptors of the main socket, the calls socket, the
    asks socket, a pipe that the server holds open as long as it lives, the input area and the output areas."""
    growth, *descriptors = map(int, arguments)
    main_fd, calls_fd, asks_fd, life_fd, input_fd, *output_fds = descriptors
    _end_with_server(life_fd)
    # As in the server: what every thread is doing, to stderr, which the server logs.
    faulthandler.register(signal.SIGUSR1)
    for descriptor in descriptors:
        # The model's own child processes must not keep them open.
        os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=main_fd)
    calls = runtime.calls = Calls(socket.socket(fileno=calls_fd))
    asks = Asks(socket.socket(fileno=asks_fd))
    inputs, outputs = Area(input_fd, growth), [Area(descriptor, growth) for descriptor in output_fds]
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
    packet = sock.recv(channel.PACKET)
    if not packet or packet[0] != channel.START:
        return
    size = int.from_bytes(packet[1:9], "little")
    settings = json.loads(bytes(inputs.view(size)[:size]))
    calls.verbose = settings["verbose"]
    runtime.instance = settings["instance"]
    try:
        if settings["complete"]:
            _say(sock, channel.COMPLETED, _complete(settings), outputs[0])
            return
        runtime.asks = asks
        asks.spin_ns = settings["spin"]
        caller = runtime.caller = Caller(asks)
        model, ready = _load(settings)
    except Refusal as refusal:
        _say(sock, channel.REFUSED, {"text": str(refusal), "details": ""}, outputs[0])
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the model's code raises
        _say(sock, channel.REFUSED, {"text": words(error), "details": details(error)}, outputs[0])
        return
    decoupled, limit = settings["decoupled"], settings["concurrent"]
    overlap = not decoupled and limit > 1 and inspect.iscoroutinefunction(model.execute)
    _say(sock, channel.READY, {"is_ready": ready, "overlap": overlap}, outputs[0])
    gc.collect()
    gc.freeze()
    if decoupled or overlap:
        calls.stream()
    executor = Executor(
        model, settings["instance"], calls, inputs, outputs, caller, decoupled=decoupled, limit=limit if overlap else 0
    )
    caller.open = True
    try:
        _serve(sock, executor, model, caller, settings["spin"])
    except (BrokenPipeError, ConnectionResetError):
        """The server is gone."""


def _serve(sock: socket.socket, executor: Executor, model: Any, caller: Caller, spin_ns: int) -> None:
    execute, recv, send = executor.execute, sock.recv, sock.send
    while True:
        packet = (_watch(sock, spin_ns) if executor.awake else b"") or recv(channel.PACKET)
        if not packet:
            break
        kind = packet[0]
        if kind == channel.EXECUTE:
            send(execute(packet))
        elif kind == channel.PROBE:
            send(bytes((channel.STATE, executor.is_ready())))
        elif kind == channel.STOP:
            break
    caller.open = False
    finalize = getattr(model, "finalize", None)
    if finalize is not None:
        finalize()


def _watch(sock: socket.socket, spin_ns: int) -> bytes:
    """What comes within a moment, without going to sleep; empty if nothing does, or the server is gone."""
    until = time.monotonic_ns() + spin_ns
    while time.monotonic_ns() < until:
        try:
            return sock.recv(channel.PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            # Whoever can run on this processor goes first.
            os.sched_yield()
    return b""


def _say(sock: socket.socket, kind: int, content: Any, outputs: Area) -> None:
    raw = json.dumps(content).encode()
    outputs.reserve(len(raw))[: len(raw)] = raw
    sock.send(bytes((kind,)) + len(raw).to_bytes(8, "little"))


def _end_with_server(life: int) -> None:
    """Let the kernel end this process, however busy, when the other end of the pipe `life` closes."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


def _import(settings: dict[str, Any]) -> Any:
    """The model's class. The module is called `<version>.<file>`, so that relative imports reach its neighbours."""
    path = Path(settings["file"])
    runtime.model_directory = settings["directory"]
    if not path.is_file():
        raise Refusal(f"Python model file not found in '{path}'")
    pb_utils = importlib.import_module("conch.backend.python.pb_utils")
    sys.modules["triton_python_backend_utils"] = sys.modules["c_python_backend_utils"] = pb_utils
    if settings["shared"]:
        # The program of a Python-based backend is a module of its own name, its neighbours are modules beside it.
        sys.path.insert(0, str(path.parent))
        module = importlib.import_module(path.stem)
    else:
        sys.path += [str(path.parent), settings["repository"]]
        package = ModuleType(path.parent.name)
        package.__path__ = [str(path.parent)]
        sys.modules[package.__name__] = package
        module = importlib.import_module(f"{package.__name__}.{path.stem}")
    if not hasattr(module, "TritonPythonModel"):
        raise Refusal(
            f"AttributeError: module '{module.__name__}' has no attribute 'TritonPythonModel' ('{path}' must define "
            "a class of that name)"
        )
    return module.TritonPythonModel


def _load(settings: dict[str, Any]) -> tuple[Any, bool]:
    kind = _import(settings)
    if not callable(getattr(kind, "execute", None)):
        raise Refusal(f"Python model {settings['file']} does not implement `execute` method.")
    model = kind()
    initialize = getattr(model, "initialize", None)
    if initialize is not None:
        result = initialize(settings["arguments"])
        if inspect.iscoroutine(result):
            asyncio.new_event_loop().run_until_complete(result)
    return model, callable(getattr(model, "is_ready", None))


def _takes_two(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        return False
    return True


def _complete(settings: dict[str, Any]) -> dict[str, Any] | None:
    kind = _import(settings)
    complete = getattr(kind, "auto_complete_config", None)
    if complete is None:
        return None
    from conch.backend.python.autocomplete import ModelConfig  # noqa: PLC0415  only a completing worker needs it

    arguments = settings["arguments"]
    given = (ModelConfig(arguments["model_config"]), arguments)
    # Ours: who takes a second argument gets that of `initialize`, and so knows where the model lies.
    completed = complete(*given[: 2 if _takes_two(complete) else 1])
    if not isinstance(completed, ModelConfig):
        name = arguments["model_name"]
        raise Refusal(f"auto_complete_config function in model '{name}' must return a valid pb.ModelConfig object.")
    try:
        json.dumps(completed.as_dict())
    except (TypeError, ValueError) as error:
        raise Refusal(printable(f"auto_complete_config made a config that is no JSON: {error}")) from error
    return completed.as_dict()
