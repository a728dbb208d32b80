"""`conch.Server`: a server inside a program."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from conch.app import Server as App
from conch.app import check
from conch.backend.program import BACKEND, ProgramBackend
from conch.config.server import LogOptions
from conch.library.bound import Bound, Programs, bind
from conch.library.home import Home
from conch.library.model import Model
from conch.library.options import server_options
from conch.listeners import Listeners
from conch.observe import log
from conch.pb import grpc_service_pb2 as pb
from conch.service.api import DataPlane
from conch.service.settings import Settings
from conch.transport.api import Transport
from conch.transport.bridge import Bridge
from conch.types.error import InferError, internal, unavailable
from conch.types.model import IndexEntry

_log = logging.getLogger("conch")
_Result = TypeVar("_Result")
#: Why start-up models failed: so many reasons are told.
_REASONS = 3


class Server:
    """A server that runs in threads of this process; ports are opened only if they are asked for.

        with conch.Server("model_repository") as server:
            answer = server.model("resnet").infer({"input": array})

    `model_repository` is a folder, an URL or several; `functions` are models too: those under `@conch.model`, or any
    with annotations. Every flag of `conch serve` is a keyword (`http_port=8000`, `backend_config={"python": {...}}`).
    The program may load and unload models, all are loaded at the start, unless `model_control_mode` or `load_model` say
    otherwise. Nothing is logged but through Python's loggers called `conch`, unless a keyword `log_...` is given.

    Any thread, also beside a running event loop. Errors are `conch.InferError`, for keywords TypeError and ValueError.
    """

    def __init__(
        self,
        model_repository: str | Path | Sequence[str | Path] = (),
        *,
        functions: Sequence[Callable[..., Any] | Bound] = (),
        **options: Any,
    ) -> None:
        several = [model_repository] if isinstance(model_repository, str | Path) else list(model_repository)
        self._programs = Programs()
        try:
            for bound in bind(functions):
                self._programs.add(bound)
            self.options = server_options([*several, self._programs.repository], options)
        except BaseException:
            self._programs.close()
            raise
        self._logs = any(name.startswith("log_") for name in options)
        self._log: log.Handler | None = None
        #: Held while the server changes hands between `start` and `stop`; by a signal's handler perhaps twice.
        self._turn = threading.RLock()
        self._home: Home | None = None
        self._app: App | None = None
        self._settings: log.Settings | None = None

    def start(self) -> Self:
        """Load the models, and open the ports that were asked for. A server is started once.

        Raises InferError when a model cannot be loaded (unless `exit_on_error=False`), OSError when a port is taken.
        """
        if self._home is None:
            check(self.options)
        with self._turn:
            if self._home is not None:
                raise RuntimeError("the server was started already")
            if self._logs:
                self._log = log.configure(self.options.log)
            home = self._home = Home("conch", self._programs)
        self._settings = self._log.settings if self._log is not None else log.detached()
        for flag in self.options.ignored:
            _log.warning("%s is accepted but has no effect yet", flag)
        backends = {BACKEND: ProgramBackend(self._programs.programs)}
        app = App(self.options, self._settings, backends)
        stop = asyncio.Event()
        starting = home.begin(app.start(stop))
        try:
            starting.result()
        except BaseException as error:
            if not starting.done():
                # The program is being interrupted.
                home.post(stop.set)
                wait([starting])
            reasons = _reasons(app)
            self._end(home, app.end)
            if isinstance(error, InferError) and reasons:
                raise internal(f"{error.message}: {reasons}", error.hint) from None
            raise
        self._app = app
        return self

    def stop(self) -> None:
        """Answer what is in flight, unload everything; nothing happens when it does not run. Raises InferError when
        models did not end within `exit_timeout_secs`: threads of theirs may still run."""
        home = self._home
        if home is None or not home.here:
            return
        home.check_waiting()
        with self._turn:
            app, self._app = self._app, None
        if app is not None and not self._end(home, app.drain):
            raise unavailable(
                f"models did not end within {self.options.exit_timeout:g} seconds", "exit_timeout_secs=... gives more"
            )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ---- models

    def model(self, name: str, version: int | str = "") -> Model:
        """A model to ask; without a version the highest that is ready when it is asked. Raises nothing by itself."""
        return Model(self._running(), self._place(), name, "" if version in ("", -1) else str(version))

    def index(self, *, ready_only: bool = False) -> list[IndexEntry]:
        """A line for each version of every model that the repositories hold."""
        return self._running().control.index(ready_only)

    def add(self, function: Callable[..., Any] | Bound) -> str:
        """One more function as a model, the model's name; blocks until it can be asked, if the server runs.

        One that cannot be loaded is forgotten: another function may have its name. Raises RuntimeError when the server
        was stopped.
        """
        (bound,) = bind([function])
        name = self._programs.add(bound)
        if self._app is not None:
            try:
                self._result(self._app.control.load, name, {})
            except Exception:
                self._programs.remove(name)
                raise
        return name

    def load(
        self, name: str, *, config: str | Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None
    ) -> Model:
        """Load a model, or load anew what has changed of it; blocks until it can be asked.

        `config` replaces its config (JSON, or a dict that could be), `files` are the contents of its files by path.
        """
        parameters: dict[str, str | bytes] = {f"file:{path}": content for path, content in (files or {}).items()}
        if config is not None:
            parameters["config"] = config if isinstance(config, str) else _json(config)
        self._result(self._running().control.load, name, parameters)
        return self.model(name)

    def unload(self, name: str, *, unload_dependents: bool = False) -> None:
        """Take a model out of service; what is in flight is still answered."""
        self._result(self._running().control.unload, name, unload_dependents)

    # ---- the server

    def listen(self, make: Callable[[DataPlane, Bridge], Transport], address: str = "") -> int:
        """Open a listener of the program's own over this server's models; the port that it is at. Raises OSError."""
        app = self._running()
        made = self._place().ask(lambda: make(app.data, app.bridge))
        return self.on_listeners(lambda listeners: listeners.add(made, address)).port

    def on_listeners(self, work: Callable[[Listeners], Coroutine[Any, Any, _Result]]) -> _Result:
        """For other faces of the library: what `work` gives, which runs on the server's loop."""
        listeners = self._running().listeners
        return self._place().run(lambda: work(listeners))

    def live(self) -> bool:
        return self._app is not None and self._place().here

    def ready(self) -> bool:
        return self.live() and self._running().data.ready()

    def metadata(self) -> pb.ServerMetadataResponse:
        return self._running().data.server_metadata()

    def metrics(self) -> str:
        """The metrics page, in Prometheus' text format."""
        page = self._running().page
        return self._place().ask(page).decode()

    def log(self, **changes: Any) -> LogOptions:
        """What is logged; `verbose=1`, `info=False` and so on change it. For servers with a keyword `log_...`."""
        app = self._running()
        assert self._settings is not None
        settings = Settings(self._settings, app.tracer, app.data.model_ready)
        return settings.change_log(changes) if changes else settings.log()

    @property
    def http_port(self) -> int:
        """The port really bound; 0 where there is no such listener."""
        return self._running().listeners.http_port

    @property
    def grpc_port(self) -> int:
        return self._running().listeners.grpc_port

    @property
    def metrics_port(self) -> int:
        return self._running().listeners.metrics_port

    def _running(self) -> App:
        if self._app is None:
            raise unavailable("the server does not run", "call start(), or use it in a with statement")
        self._place().check()
        return self._app

    def _place(self) -> Home:
        assert self._home is not None
        return self._home

    def _result(self, begin: Callable[..., Future[None]], *arguments: Any) -> None:
        """Begin it, and wait until it is done."""
        self._place().check_waiting()
        begin(*arguments).result()

    def _end(self, home: Home, ending: Callable[[], Coroutine[Any, Any, bool]]) -> bool:
        home.check_waiting()
        ended = home.begin(ending())
        try:
            drained = ended.result()
            home.end(clean=drained)
        except BaseException:
            # The program is being interrupted, or there is a mistake of ours: nobody waits for the rest.
            ended.add_done_callback(lambda done: home.leave(clean=done.exception() is None and done.result()))
            raise
        finally:
            self._programs.close()
            if self._log is not None:
                self._log.close()
        return drained


def _reasons(app: App) -> str:
    """Why models are not ready."""
    found = [] if app.registry is None else app.registry.statuses()
    failed = [f"{name}: {text.partition(': ')[2]}" for name, _, text in found if text != "READY"]
    more = f" (and {len(failed) - _REASONS} more)" if len(failed) > _REASONS else ""
    return "; ".join(failed[:_REASONS]) + more


def _json(config: Mapping[str, Any]) -> str:
    import json  # noqa: PLC0415

    return json.dumps(config)
