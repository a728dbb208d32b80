"""Guards around the backend of an installed package: what it does wrong is an error of its models alone."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from conch.backend.api import (
    Backend,
    Host,
    Housed,
    Instance,
    LoadedModel,
    LoopInstance,
    ModelFiles,
    Placement,
    StreamingInstance,
    ThreadInstance,
)
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal
from conch.types.model import ModelSpec
from conch.types.request import InferRequest, ResponseSink
from conch.types.response import InferResponse

_LOG = logging.getLogger("conch.backend")
#: What an object must have -> how many arguments it takes there.
_BACKEND: Final = {"complete": 3, "load": 5}
_MODEL: Final = {"instance": 1, "ready": 0, "close": 0}
_PAGE: Final = "docs/backends.md says what a backend must offer"


def check_backend(backend: Any, about: str) -> None:
    """Raises InferError unless it can be called as `backend.api.Backend` says."""
    _check(backend, _BACKEND, about)


def _check(thing: Any, wanted: dict[str, int], about: str) -> None:
    for name, count in wanted.items():
        method = getattr(thing, name, None)
        if not callable(method):
            raise internal(f"{about} has no method '{name}'", _PAGE)
        try:
            inspect.signature(method).bind(*[None] * count)
        except TypeError as error:
            raise internal(
                f"'{name}' of {about} cannot be called with {count} argument{'' if count == 1 else 's'}: {error}", _PAGE
            ) from None
        except ValueError:
            """Native code does not say what it takes."""


class ForeignBackend:
    def __init__(self, name: str, inner: Backend, about: str) -> None:
        self.name = name
        self._inner = inner
        self._about = about

    def on_gpus(self) -> bool:
        """See `backend.api.Accelerated`: a package's backend may say so, and need not."""
        able = getattr(self._inner, "on_gpus", None)
        try:
            return callable(able) and bool(able())
        except Exception:  # noqa: BLE001  foreign code
            _LOG.exception("'on_gpus' of %s failed, its models go to the CPU", self._about)
            return False

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        self._inner.complete(config, files, host)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> ForeignModel:
        loaded = self._inner.load(config, spec, files, host, stats)
        about = f"the model that {self._about} made for '{spec.name}'"
        _check(loaded, _MODEL, about)
        kind = HousedForeignModel if isinstance(loaded, Housed) else ForeignModel
        return kind(loaded, host, f"{self._about}, model '{spec.name}'")


class ForeignModel:
    def __init__(self, inner: LoadedModel, host: Host, about: str) -> None:
        self._inner = inner
        self._host = host
        self._about = about

    def instance(self, placement: Placement) -> Instance:
        made = self._inner.instance(placement)
        if not callable(getattr(made, "close", None)):
            raise internal(f"an instance of {self._about} has no method 'close'", _PAGE)
        # The order is that in which the server looks.
        if isinstance(made, ThreadInstance):
            return GuardedThread(made, self._about)
        if isinstance(made, StreamingInstance):
            return GuardedStreaming(made, self._host, self._about)
        if isinstance(made, LoopInstance):
            return GuardedLoop(made, self._host, self._about)
        raise internal(f"an instance of {self._about} has neither 'run' nor 'start'", _PAGE)

    def ready(self) -> bool:
        try:
            return bool(self._inner.ready())
        except Exception:  # noqa: BLE001  foreign code
            _LOG.exception("'ready' of %s failed", self._about)
            return False

    def close(self) -> None:
        self._inner.close()


class HousedForeignModel(ForeignModel):
    """One that runs in processes of its own."""

    def processes(self) -> Sequence[int]:
        assert isinstance(self._inner, Housed)
        try:
            return [int(each) for each in self._inner.processes()]
        except Exception:  # noqa: BLE001  foreign code, asked by threads that serve all models
            _LOG.exception("'processes' of %s failed", self._about)
            return ()


class _Once:
    """A request's sink that takes one final answer, of the right kind, and knows whether it came. Any thread."""

    __slots__ = ("_about", "_lock", "_sink", "_told", "settled")

    def __init__(self, sink: ResponseSink, about: str) -> None:
        self._sink = sink
        self._about = about
        self._lock = threading.Lock()
        self._told = False
        self.settled = False

    def reply(self, request: InferRequest, response: InferResponse, final: bool) -> None:
        if not isinstance(response, InferResponse):
            error = internal(
                f"{self._about} answered with '{type(response).__name__}', expected 'InferResponse'", _PAGE
            )
            self.fail(request, error)
        elif not request.form.decoupled and not final:
            self.fail(request, internal(f"{self._about} is not decoupled and gave a response that is not final", _PAGE))
        elif self._take(final):
            self._sink.reply(request, response, final)

    def fail(self, request: InferRequest, error: InferError) -> None:
        if not isinstance(error, InferError):
            error = internal(f"{self._about} failed: {type(error).__name__}: {error}")
        if self._take(True):
            self._sink.fail(request, error)

    def _take(self, final: bool) -> bool:
        with self._lock:
            if self.settled:
                if not self._told:
                    self._told = True
                    _LOG.error("%s answered a request again after its final answer; that is dropped", self._about)
                return False
            self.settled = final
            return True


def _guard(batch: Sequence[InferRequest], about: str) -> list[_Once]:
    guards = []
    for request in batch:
        once = _Once(request.sink, about)
        request.sink = once
        guards.append(once)
    return guards


def _settle(batch: Sequence[InferRequest], guards: Sequence[_Once], error: InferError) -> None:
    for request, once in zip(batch, guards, strict=True):
        if not once.settled:
            once.fail(request, error)


def _raised(about: str, error: BaseException) -> InferError:
    if isinstance(error, InferError):
        return error
    _LOG.error("%s raised an exception", about, exc_info=error)
    return internal(f"{about} failed: {type(error).__name__}: {error}")


class GuardedThread:
    def __init__(self, inner: ThreadInstance, about: str) -> None:
        self._inner = inner
        self._about = about

    def run(self, batch: Sequence[InferRequest]) -> None:
        guards = _guard(batch, self._about)
        try:
            self._inner.run(batch)
        except BaseException as error:  # noqa: BLE001  foreign code: its thread, and the requests, must go on
            _settle(batch, guards, _raised(self._about, error))
        else:
            _settle(batch, guards, internal(f"{self._about} returned without an answer to the request", _PAGE))

    def close(self) -> None:
        self._inner.close()


class GuardedLoop:
    """`streams`: requests may be answered after their batch is over."""

    streams = False

    def __init__(self, inner: LoopInstance, host: Host, about: str) -> None:
        self._inner = inner
        self._loop = host.loop
        self._about = about
        #: The loop's thread.
        self._home = 0

    def start(self, batch: Sequence[InferRequest], idle: Callable[[], None]) -> None:
        guards = _guard(batch, self._about)
        self._home = threading.get_ident()
        over = False

        def done() -> None:
            nonlocal over
            if over:
                return
            over = True
            if not self.streams:
                _settle(batch, guards, internal(f"{self._about} is done without an answer to the request", _PAGE))
            idle()

        try:
            self._inner.start(batch, lambda: self._bring(done))
        except BaseException as error:  # noqa: BLE001  foreign code, on the loop that serves everybody
            _settle(batch, guards, _raised(self._about, error))
            done()

    def close(self) -> None:
        self._inner.close()

    def _bring(self, done: Callable[[], None]) -> None:
        """`idle` belongs to the loop's thread, wherever it was called."""
        if threading.get_ident() == self._home:
            done()
        else:
            self._loop.call_soon_threadsafe(done)


class GuardedStreaming(GuardedLoop):
    streams = True

    def __init__(self, inner: StreamingInstance, host: Host, about: str) -> None:
        super().__init__(inner, host, about)
        self._streaming = inner

    def open(self) -> int:
        try:
            return int(self._streaming.open())
        except Exception:  # noqa: BLE001  foreign code, asked by who drains and counts
            _LOG.exception("'open' of %s failed", self._about)
            return 0
