"""The Python backend: Triton's `model.py` files, each instance in a worker process of its own."""

from __future__ import annotations

from typing import Any

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.counters import counters
from conch.backend.python.complete import merge
from conch.backend.python.environment import Environment, environment
from conch.backend.python.host import PythonInstance
from conch.backend.python.process import Launch, WorkerProcess, verbose
from conch.backend.python.program import FILE, Program
from conch.backend.python.settings import Settings, concurrency, read_settings
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec


class PythonBackend:
    """Reads `default_model_filename` or `model.py` of the version's folder, or has the program of a Python-based
    backend run all models."""

    def __init__(self, name: str = "python", program: Program | None = None) -> None:
        self.name = name
        self._program = program

    def on_gpus(self) -> bool:
        """What a model does with the GPU that its arguments name is its own affair, as in Triton."""
        return True

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """Let `auto_complete_config`, if the model has it, fill in the config; in a worker that ends right after."""
        settings = self._read(host)
        home = self._home(config, files, settings)
        try:
            worker = WorkerProcess(_launch(config, files, settings, home, self._program, "", complete=True))
            answer = worker.begin(lambda: False)
            worker.stop(1.0)
        finally:
            home.close()
        if answer["content"] is not None:
            merge(config, answer["content"])

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        settings = self._read(host)
        concurrency(config)
        home = self._home(config, files, settings)
        return PythonModel(config, spec, files, host, stats, settings, home, self._program)

    def _read(self, host: Host) -> Settings:
        return read_settings(host.settings) if self._program is None else self._program.settings(host.settings)

    def _home(self, config: ModelConfig, files: ModelFiles, settings: Settings) -> Environment:
        shared = () if self._program is None else (self._program.folder,)
        return environment(config, files, settings.environments, shared)


class PythonModel:
    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        files: ModelFiles,
        host: Host,
        stats: ModelStats,
        settings: Settings,
        home: Environment,
        program: Program | None = None,
    ) -> None:
        self._config = config
        self._spec = spec
        self._files = files
        self._host = host
        self._stats = stats
        self._settings = settings
        self._home = home
        self._program = program
        self._instances: list[PythonInstance] = []

    def instance(self, placement: Placement) -> PythonInstance:
        launch = _launch(
            self._config, self._files, self._settings, self._home, self._program, placement.name, placement, self._host
        )
        instance = PythonInstance(self._spec, counters(self._stats, placement), self._host.loop, launch)
        self._instances = [*[each for each in self._instances if not each.closed], instance]
        return instance

    def ready(self) -> bool:
        return all([instance.ready() for instance in self._instances if not instance.closed])  # noqa: C419  each is to be asked

    def processes(self) -> list[int]:
        """See `backend.api.Housed`."""
        return [pid for instance in self._instances if (pid := instance.process)]

    def close(self) -> None:
        """Instances are closed by who made them; again does no harm."""
        for instance in self._instances:
            instance.close()
        self._instances.clear()
        self._home.close()


def _launch(
    config: ModelConfig,
    files: ModelFiles,
    settings: Settings,
    home: Environment,
    program: Program | None,
    instance: str,
    placement: Placement | None = None,
    host: Host | None = None,
    *,
    complete: bool = False,
) -> Launch:
    from conch.config.json import to_json  # noqa: PLC0415  protobuf's JSON is not needed before a model is loaded

    file = files.version_directory / (config.default_model_filename or FILE)
    directory = file.parent
    arguments = {
        "model_config": to_json(config).decode(),
        "model_instance_kind": placement.kind if placement is not None else "CPU",
        "model_instance_name": instance,
        "model_instance_device_id": str(placement.device_id if placement is not None else 0),
        "model_repository": str(files.directory),
        "model_version": str(files.version),
        "model_name": config.name,
    }
    # With one processor, whoever waits awake holds up whom it waits for.
    spin_ns = settings.call_spin * 1000 if host is not None and host.cpus > 1 else 0
    if program is not None:
        file, directory = program.folder / FILE, files.version_directory
        arguments |= program.arguments(placement)
    start: dict[str, Any] = {
        "file": str(file),
        "shared": program is not None,
        "directory": str(directory),
        "repository": str(files.directory),
        "instance": instance,
        "complete": complete,
        "decoupled": config.model_transaction_policy.decoupled,
        "concurrent": concurrency(config),
        "spin": spin_ns,
        "verbose": verbose(),
        "arguments": arguments,
    }
    return Launch(
        config.name,
        instance or config.name,
        home.python,
        start,
        settings,
        None if host is None else host.models,
        None if host is None else host.metrics,
        frozenset() if placement is None else placement.cores,
        home.variables,
        spin_ns,
    )
