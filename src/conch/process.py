"""The server as a process: its log, its signals, its exit codes. What it serves is joined in `app`."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import uvloop

from conch.app import Server, check
from conch.config.server import ServerOptions
from conch.memory.trim import trim
from conch.observe import log
from conch.types.error import InferError

_log = logging.getLogger("conch")


def run(options: ServerOptions, greet: Callable[[int], None] | None = None, advice: str = "") -> int:
    """Serve until SIGINT or SIGTERM. Returns the process's exit code (Triton's: 0, or 1 when start or drain failed).

    `greet` is called once clients are answered, with the port of the HTTP listener (0 where there is none).
    `advice` is logged when start-up models do not load.
    """
    try:
        handler = log.configure(options.log)
    except OSError as error:
        # There is no log.
        print(f"conch: cannot write the log to {options.log.file}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 1
    try:
        for flag in options.ignored:
            _log.warning("%s is accepted but has no effect yet", flag)
        try:
            check(options)
        except OSError as error:
            _log.error("error: creating server: Invalid argument - %s", error.strerror or error)
            return 1
        except InferError as error:
            log_refusal(error)
            return 1
        return uvloop.run(_serve(Server(options, handler.settings), greet, advice))
    finally:
        handler.close()


async def _serve(server: Server, greet: Callable[[int], None] | None, advice: str) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    # What every thread is doing, to stderr: for a server that seems to hang.
    faulthandler.register(signal.SIGUSR1)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        started = await server.start(stop)
    except InferError as error:
        log_refusal(error)
        if advice and server.registry is not None:
            _log.error("%s", advice)
        started = False
    except OSError as error:
        _log.error("%s", error.strerror or error)
        started = False
    except Exception:  # noqa: BLE001  whatever it is, what was begun is ended
        _log.exception("error: creating server")
        started = False
    if not started:
        if not await server.end():
            leave_at_once()
        return 0 if stop.is_set() else 1
    settle_heap()
    if greet is not None:
        greet(server.http_port)
    await stop.wait()
    if not await server.drain():
        leave_at_once()
    return 0


def log_refusal(error: InferError) -> None:
    hint = f" ({error.hint})" if error.hint else ""
    _log.error("error: creating server: %s - %s%s", error.code.value, error.message, hint)


def leave_at_once() -> NoReturn:
    """A thread hangs in a model's code and would hold up an orderly exit for ever."""
    _log.error("Exit timeout expired. Exiting immediately.")
    logging.shutdown()
    os._exit(1)


def settle_heap() -> None:
    """What was made at start-up lives on: keep the garbage collector from walking over it again and again."""
    gc.collect()
    gc.freeze()
    # What loading needed at the time is not needed again soon.
    trim()
    gc.set_threshold(10_000, 50, 50)
