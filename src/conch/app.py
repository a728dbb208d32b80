"""The composition root: the only file that knows every room. Builds the server, runs it, drains it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn

import uvloop

from conch import TRITON_VERSION
from conch.backend.api import Host, Instance
from conch.backend.find import BACKENDS, find_backend
from conch.cache.api import Cache
from conch.cache.build import Remember
from conch.cache.local import LocalCache
from conch.cache.open import open_cache
from conch.config.machine import cpus, policy_cores
from conch.config.sequence_tensors import SequenceTensors
from conch.config.server import ServerOptions
from conch.frontend.metrics import MetricsTransport
from conch.memory.regions import Regions
from conch.observe import log, metrics, tracing
from conch.observe.custom import Families
from conch.observe.process import MachineGauge
from conch.observe.stats import ModelStats
from conch.observe.trace import Tracer
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry import tables
from conch.registry.crew import Equipment
from conch.registry.ensembles import EnsembleLoader
from conch.registry.loader import Loader
from conch.registry.prepare import prepare
from conch.registry.registry import Registry
from conch.repository.local import LocalStore
from conch.schedule.api import Scheduler, Version
from conch.schedule.build import build as build_scheduler
from conch.schedule.order import Order
from conch.schedule.rate import Limit
from conch.schedule.timer import FineTimer
from conch.schedule.turns import Turns
from conch.service.checks import check_inputs
from conch.service.control import Control
from conch.service.data import EXTENSIONS, Data
from conch.service.models import Models
from conch.service.settings import Settings
from conch.transport import tls
from conch.transport.api import Transport
from conch.transport.bridge import Bridge
from conch.transport.grpc import GrpcTransport
from conch.transport.http import HttpTransport
from conch.types.error import InferError
from conch.types.request import RequestForm, RequestHead

_log = logging.getLogger("conch")


def run(options: ServerOptions) -> int:
    """Serve until SIGINT or SIGTERM. Returns the process's exit code (Triton's: 0, or 1 when start or drain failed)."""
    try:
        handler = log.configure(options.log)
    except OSError as error:
        print(f"conch: cannot write the log to {options.log.file}: {error.strerror}")  # noqa: T201  there is no log
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
            hint = f" ({error.hint})" if error.hint else ""
            _log.error("error: creating server: %s - %s%s", error.code.value, error.message, hint)
            return 1
        return uvloop.run(Server(options, handler.settings).serve())
    finally:
        handler.close()


def check(options: ServerOptions) -> None:
    """What can be found out about files and the machine before models are loaded. Raises OSError and InferError."""
    for name, policy in options.host_policies.items():
        policy_cores(name, policy)
    for listener, alpn in ((options.http, "http/1.1"), (options.grpc, "h2")):
        if listener.enabled and listener.tls is not None:
            tls.load(listener.tls, alpn)
    tracing.check(options.trace)


class Server:
    """One server: rooms joined, started in order, drained in order."""

    def __init__(self, options: ServerOptions, log_settings: log.Settings) -> None:
        self._options = options
        self._log_settings = log_settings
        self._tracer: Tracer | None = None
        self._data: Data | None = None
        self._exiting = False
        self._transports: list[Transport] = []
        self._cache: Cache | None = None
        self._families = Families(metrics.taken)

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        models = Models()
        try:
            registry = self._registry(loop, models)
        except InferError as error:
            log_refusal(error)
            return 1
        bridge = Bridge(loop)
        trace = self._options.trace
        tracer = self._tracer = Tracer(trace, tracing.recorder(trace), bridge.on_loop, bridge.post)
        data = self._data = Data(registry, self._options.id, lambda: self._exiting, tracer)
        control = Control(registry, self._options.repository.control_mode)
        models.join(data, control)
        started = await self._start(
            loop, registry, stop, functools.partial(self._listen, registry, bridge, data, control, tracer)
        )
        if not started:
            if not await self._end(loop, registry, self._options.exit_timeout):
                leave_at_once()
            return 0 if stop.is_set() else 1
        settle_heap()
        await stop.wait()
        return await self._drain(loop, registry)

    async def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        stop: asyncio.Event,
        listen: Callable[[], Awaitable[None]],
    ) -> bool:
        """Load the start-up models, then open the listeners: nobody can connect to a server that cannot answer."""
        loading: asyncio.Future[None] = loop.run_in_executor(None, registry.start)
        stopped = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if stop.is_set():
            loading.add_done_callback(lambda done: done.cancelled() or done.exception())
            return False
        try:
            await loading
        except InferError as error:
            self._log_tables(registry)
            log_refusal(error)
            return False
        self._log_tables(registry)
        try:
            await listen()
        except OSError as error:
            _log.error("%s", error.strerror or error)
            return False
        return True

    def _registry(self, loop: asyncio.AbstractEventLoop, models: Models) -> Registry:
        """Raises InferError when the response cache cannot be made."""
        options = self._options
        home = threading.get_ident()
        timer = FineTimer(loop)

        def post(call: Callable[[], object]) -> object:
            if threading.get_ident() == home:
                return loop.call_soon(call)
            return loop.call_soon_threadsafe(call)

        def schedule(
            config: ModelConfig,
            instances: Sequence[Instance],
            stats: ModelStats,
            sequences: SequenceTensors | None = None,
        ) -> Scheduler:
            return build_scheduler(config, instances, stats, post, timer.later, sequences)

        def host(backend: str) -> Host:
            settings = {**options.backend.get("", {}), **options.backend.get(backend, {})}
            return Host(loop, settings, cpus(), models, self._families)

        def prepare_step(member: Version, head: RequestHead) -> RequestForm:
            # The data plane is made after the registry, and before the first model is loaded.
            assert self._data is not None
            return self._data.prepare_on(member, head)

        cache = self._cache = open_cache(options.cache, post)
        remember = None if cache is None else Remember(cache, post, Order)
        repository = options.repository
        return Registry(
            LocalStore(repository.paths, repository.config_name, namespacing=repository.namespacing),
            functools.partial(prepare, auto_complete=repository.auto_complete),
            Loader(
                find_backend,
                schedule,
                host,
                auto_complete=repository.auto_complete,
                retries=repository.load_retries,
                check=check_inputs,
                equipment=Equipment(
                    Turns([Limit(*each) for each in options.rate.resources]) if options.rate.mode != "off" else None,
                    {name: policy_cores(name, policy) for name, policy in options.host_policies.items()},
                ),
                remember=remember,
            ),
            repository,
            post,
            EnsembleLoader(prepare_step, post, remember),
        )

    async def _listen(self, registry: Registry, bridge: Bridge, data: Data, control: Control, tracer: Tracer) -> None:
        options = self._options
        settings = Settings(self._log_settings, tracer, data.model_ready)
        regions = Regions(allowed=options.memory.client_shm)
        if options.grpc.enabled:
            await self._open(
                GrpcTransport(options.grpc, data, control, bridge, settings, regions), options.grpc.address
            )
        if options.http.enabled:
            await self._open(
                HttpTransport(options.http, data, control, bridge, settings, regions), options.http.address
            )
        if options.metrics.enabled:
            address = options.metrics.address or options.http.address
            machine = MachineGauge(options.metrics.interval_ms / 1000)

            cached = self._cache.stats if isinstance(self._cache, LocalCache) else None

            def page() -> bytes:
                gauge = machine.now() if options.metrics.cpu else None
                return metrics.render(registry.ready_versions(), gauge, cached) + self._families.render()

            transport = MetricsTransport(dataclasses.replace(options.metrics, address=address), page)
            await self._open(transport, address)

    async def _open(self, transport: Transport, address: str) -> None:
        self._transports.append(transport)
        await transport.start()
        _log.info("Started %s at %s:%d", transport.title, address, transport.port)

    def _log_tables(self, registry: Registry) -> None:
        options = self._options
        log.table(_log, tables.draw(("Repository Agent", "Path"), []))
        used = sorted({version.config.backend for version in registry.ready_versions()} & BACKENDS.keys())
        log.table(_log, tables.backends([(name, BACKENDS[name][0], options.backend.get(name, {})) for name in used]))
        log.table(_log, tables.models(registry.statuses()))
        rows = [
            ("server_id", options.id),
            ("server_version", TRITON_VERSION),
            ("server_extensions", " ".join(EXTENSIONS)),
            *[(f"model_repository_path[{n}]", str(path)) for n, path in enumerate(options.repository.paths)],
            ("model_control_mode", f"MODE_{options.repository.control_mode.upper()}"),
            ("strict_model_config", str(int(not options.repository.auto_complete))),
            ("model_config_name", options.repository.config_name),
            ("strict_readiness", str(int(options.repository.strict_readiness))),
            ("exit_timeout", f"{options.exit_timeout:g}"),
            ("cache_enabled", str(int(self._cache is not None))),
        ]
        log.table(_log, tables.options(rows))

    async def _drain(self, loop: asyncio.AbstractEventLoop, registry: Registry) -> int:
        """Stop accepting, answer what is in flight, unload everything; all within the exit time-out."""
        self._exiting = True
        deadline = time.monotonic() + self._options.exit_timeout
        for transport in self._transports:
            if not isinstance(transport, MetricsTransport):
                transport.stop_accepting()
        speak_at = 0.0
        while any(t.inflight() for t in self._transports) and (now := time.monotonic()) < deadline:
            if now >= speak_at:
                found = sum([t.connections() for t in self._transports if isinstance(t, HttpTransport)])
                _log.info("Timeout %d: Found %d HTTP service connections", round(deadline - now), found)
                speak_at = now + 1.0
            await asyncio.sleep(0.01)
        drained = await self._end(loop, registry, max(0.0, deadline - time.monotonic()))
        if not drained:
            leave_at_once()
        return 0

    async def _end(self, loop: asyncio.AbstractEventLoop, registry: Registry, seconds: float) -> bool:
        drained = await loop.run_in_executor(None, registry.stop, seconds)
        for transport in self._transports:
            await transport.close()
        if self._cache is not None:
            await loop.run_in_executor(None, self._cache.close)
        if self._tracer is not None:
            # Before the loop ends: what is on its way to the file is noted on the loop.
            await loop.run_in_executor(None, self._tracer.close)
        return drained


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
    gc.set_threshold(10_000, 50, 50)
