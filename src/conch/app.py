"""The composition root: the only file that knows every room. Builds a server, starts it, drains it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conch.backend.api import Backend, Host, Instance
from conch.backend.find import Backends
from conch.cache.api import Cache
from conch.cache.build import Remember
from conch.cache.local import LocalCache
from conch.cache.open import open_cache
from conch.config.machine import cpus, policy_cores
from conch.config.sequence_tensors import SequenceTensors
from conch.config.server import ServerOptions
from conch.config.traffic import read_file
from conch.gpus import Gpus
from conch.listeners import Listeners
from conch.memory.pinned import PinnedPool
from conch.memory.regions import Regions
from conch.observe import loads, log, metrics, tracing
from conch.observe import traffic as traffic_page
from conch.observe.custom import Families
from conch.observe.latencies import Details, details_of
from conch.observe.process import MachineGauge
from conch.observe.stats import ModelStats
from conch.observe.trace import Tracer
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry import tables
from conch.registry.crew import Equipment
from conch.registry.ensembles import EnsembleLoader
from conch.registry.gate import Gatekeeper
from conch.registry.loader import Loader
from conch.registry.prepare import prepare
from conch.registry.registry import Registry
from conch.registry.residency import open_residency
from conch.registry.steward import Steward
from conch.registry.succession import elders_of
from conch.repository.agent_find import Agents
from conch.repository.agents import AgentStore
from conch.repository.open import Repositories, open_repositories
from conch.repository.poll import Poller
from conch.repository.watch import Watcher, watcher
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
from conch.service.traffic import Traffic
from conch.transport import tls
from conch.transport.bridge import Bridge
from conch.types.error import InferError, invalid
from conch.types.request import RequestForm, RequestHead

_log = logging.getLogger("conch")


def check(options: ServerOptions) -> None:
    """What can be found out about files and the machine before models are loaded. Raises OSError and InferError."""
    for name, policy in options.host_policies.items():
        policy_cores(name, policy)
    for listener, alpn in ((options.http, "http/1.1"), (options.grpc, "h2")):
        if listener.enabled and listener.tls is not None:
            tls.load(listener.tls, alpn)
    tracing.check(options.trace)
    _details(options)


def _details(options: ServerOptions) -> Details:
    try:
        return details_of(options.metrics.config)
    except ValueError as error:
        raise invalid(str(error)) from None


class Server:
    """One server: rooms joined, started in order, drained in order. All calls on the event loop's thread.

    `backends` are backends of this server alone, by name. A process around it is in `process`, a library in `library`.
    """

    def __init__(
        self, options: ServerOptions, log_settings: log.Settings, backends: Mapping[str, Backend] | None = None
    ) -> None:
        self._options = options
        self._log_settings = log_settings
        self._backends = Backends(Path(options.repository.backend_directory), backends or {})
        self._tracer: Tracer | None = None
        self._data: Data | None = None
        self._exiting = False
        self._listeners: Listeners | None = None
        self._cache: Cache | None = None
        self._steward: Steward | None = None
        self._repositories: Repositories | None = None
        self._traffic: Traffic | None = None
        self._watcher: Watcher | None = None
        self._poller: Poller | None = None
        self._agents = Agents(Path(options.repository.agent_directory))
        self._families = Families(metrics.taken)
        self._details = _details(options)
        self._loads = loads.Loads()
        self._machine = MachineGauge(options.metrics.interval_ms / 1000)
        self._gpus = Gpus(options)
        #: What is servable; None before `start`.
        self.registry: Registry | None = None

    async def start(self, stop: asyncio.Event) -> bool:
        """Load the start-up models, then open the listeners: nobody can connect to a server that cannot answer.

        False when `stop` was set meanwhile. Raises InferError and OSError. Whatever comes of it, `drain` or `end` is to
        be called once.
        """
        loop = asyncio.get_running_loop()
        models = Models()
        registry = self._registry(loop, models)
        traffic = self._traffic = self._routes(registry)
        self.registry = registry
        bridge = self.bridge = Bridge(loop)
        trace = self._options.trace
        tracer = self._tracer = Tracer(trace, tracing.recorder(trace), bridge.on_loop, bridge.post)
        data = self._data = Data(registry, self._options.id, lambda: self._exiting, tracer, elders_of, traffic)
        control = self.control = Control(registry, self._options.repository.control_mode)
        models.join(data, control, registry.lend)
        settings = Settings(self._log_settings, tracer, data.model_ready)
        regions = Regions(allowed=self._options.memory.client_shm)
        self._listeners = Listeners(data, control, bridge, settings, regions, traffic, self.page)
        if self._options.repository.watch:
            # Before the start-up models are read: what is saved meanwhile is not missed.
            self._watcher = watcher(self._options.repository, registry)
            self._watcher.start()
        if not await self._load(loop, registry, stop):
            return False
        await self._listen(self._listeners)
        for follower in (self._watcher, self._poller):
            if follower is not None:
                follower.begin()
        return True

    @property
    def data(self) -> Data:
        """Once `start` was called."""
        assert self._data is not None
        return self._data

    @property
    def tracer(self) -> Tracer:
        """Once `start` was called."""
        assert self._tracer is not None
        return self._tracer

    @property
    def listeners(self) -> Listeners:
        """Once `start` was called."""
        assert self._listeners is not None
        return self._listeners

    @property
    def http_port(self) -> int:
        """The port of the HTTP listener; 0 where there is none."""
        return self.listeners.http_port

    def page(self) -> bytes:
        """The metrics page."""
        assert self.registry is not None
        assert self._traffic is not None
        cached = self._cache.stats if isinstance(self._cache, LocalCache) else None
        gauge = self._machine.now() if self._options.metrics.cpu else None
        page = metrics.render(
            self.registry.ready_versions(), gauge, cached, self._gpus.names, latency_counters=self._details.counters
        ) + loads.render(self._loads)
        if self._steward is not None:
            page += self._steward.page()
        return page + self._gpus.page() + traffic_page.render(self._traffic.counts()) + self._families.render()

    async def _load(self, loop: asyncio.AbstractEventLoop, registry: Registry, stop: asyncio.Event) -> bool:
        loading: asyncio.Future[None] = loop.run_in_executor(None, self._begin, registry)
        stopped = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {loading, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if stop.is_set():
            loading.add_done_callback(lambda done: done.cancelled() or done.exception())
            return False
        try:
            await loading
        finally:
            self._log_tables(registry)
        return True

    def _begin(self, registry: Registry) -> None:
        assert self._repositories is not None
        try:
            self._repositories.check()
        except InferError as error:
            if self._options.repository.exit_on_error:
                raise
            _log.warning("%s", error.message)
        repository = self._options.repository
        if repository.control_mode == "poll":
            self._poller = Poller(self._repositories.store, registry, repository.poll_seconds)
            self._poller.watch()
        registry.start()

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

        pinned = PinnedPool(options.gpu.pinned_bytes)

        def host(backend: str) -> Host:
            # Models of Python-based backends are Python models.
            also = options.backend.get("python", {}) if self._backends.is_python(backend) else {}
            settings = {**options.backend.get("", {}), **also, **options.backend.get(backend, {})}
            return Host(loop, settings, cpus(), models, self._families, pinned)

        def prepare_step(member: Version, head: RequestHead) -> RequestForm:
            # The data plane is made after the registry, and before the first model is loaded.
            assert self._data is not None
            return self._data.prepare_on(member, head)

        gpus = self._gpus.find()
        cache = self._cache = open_cache(options.cache, post)
        remember = None if cache is None else Remember(cache, post, Order)
        repository = options.repository
        repositories = self._repositories = open_repositories(repository)
        loader = Loader(
            self._backends.find,
            schedule,
            host,
            auto_complete=repository.auto_complete,
            retries=repository.load_retries,
            check=check_inputs,
            check_runtime=self._backends.check_runtime,
            equipment=Equipment(
                Turns([Limit(*each) for each in options.rate.resources]) if options.rate.mode != "off" else None,
                {name: policy_cores(name, policy) for name, policy in options.host_policies.items()},
                self._gpus.admit,
            ),
            gpus=gpus,
            least=options.gpu.min_compute_capability,
            remember=remember,
            details=self._details,
        )
        versions, self._steward = open_residency(
            loader, options.memory.budget, post, timer.later, repository.load_threads, gpus
        )
        return Registry(
            AgentStore(repositories.store, self._agents),
            functools.partial(prepare, auto_complete=repository.auto_complete),
            versions,
            repository,
            post,
            EnsembleLoader(prepare_step, post, remember, self._details),
            self._loads,
            Gatekeeper(prepare_step),
        )

    def _routes(self, registry: Registry) -> Traffic:
        """Raises InferError for a file of routes that cannot be followed."""
        options = self._options
        routes = read_file(Path(options.traffic.file)) if options.traffic.file else {}
        patterns = (options.http.header_forward_pattern, options.grpc.header_forward_pattern)
        return Traffic(registry, routes, patterns)

    async def _listen(self, listeners: Listeners) -> None:
        options = self._options
        if options.grpc.enabled:
            await listeners.grpc(options.grpc)
        if options.http.enabled:
            await listeners.http(options.http)
        if options.metrics.enabled:
            self._gpus.watch()
            address = options.metrics.address or options.http.address
            await listeners.metrics(dataclasses.replace(options.metrics, address=address))

    def _log_tables(self, registry: Registry) -> None:
        cached = self._cache is not None
        used = self._backends.used()
        for text in tables.startup(self._options, self._agents.used(), used, registry.statuses(), EXTENSIONS, cached):
            log.table(_log, text)

    async def drain(self) -> bool:
        """Stop accepting, answer what is in flight, unload everything; all within the exit time-out. As `end`."""
        self._exiting = True
        deadline = time.monotonic() + self._options.exit_timeout
        await self.listeners.drain(deadline)
        return await self.end(max(0.0, deadline - time.monotonic()))

    async def end(self, seconds: float | None = None) -> bool:
        """Close everything, within `seconds` or the exit time-out. False when that was too short: then threads may hang
        in a model's code, and only ending the process ends them."""
        loop = asyncio.get_running_loop()
        seconds = self._options.exit_timeout if seconds is None else seconds
        for follower in (self._watcher, self._poller):
            if follower is not None:
                await loop.run_in_executor(None, follower.stop)
        if self._repositories is not None:
            self._repositories.interrupt()
        if self._steward is not None:
            self._steward.stop()
        drained = self.registry is None or await loop.run_in_executor(None, self.registry.stop, seconds)
        if self._steward is not None:
            self._steward.close()
        if self._repositories is not None:
            await loop.run_in_executor(None, self._repositories.close)
        await loop.run_in_executor(None, self._agents.close)
        if self._listeners is not None:
            await self._listeners.close()
        # Before the loop ends: what is on its way to the tracer's file is noted on the loop.
        for part in (self._traffic, self._cache, self._tracer, self._gpus):
            if part is not None:
                await loop.run_in_executor(None, part.close)
        return drained
