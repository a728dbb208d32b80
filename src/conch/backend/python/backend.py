"""The Python backend: Triton's `model.py` files, each instance in a worker process of its own."""

from __future__ import annotations

from typing import Any

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.python.complete import merge
from conch.backend.python.host import PythonInstance
from conch.backend.python.process import Launch, WorkerProcess, verbose
from conch.backend.python.settings import Settings, concurrency, interpreter, read_settings
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.model import ModelSpec


class PythonBackend:
    """Reads `default_model_filename` or `model.py` of the version's folder."""

    name = "python"

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        """Let `auto_complete_config`, if the model has it, fill in the config; in a worker that ends right after."""
        launch = _launch(config, files, read_settings(host.settings), "", complete=True)
        worker = WorkerProcess(launch)
        answer = worker.begin(lambda: False)
        worker.stop(1.0)
        if answer["content"] is not None:
            merge(config, answer["content"])

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> PythonModel:
        settings = read_settings(host.settings)
        interpreter(config, files)
        concurrency(config)
        return PythonModel(config, spec, files, host, stats, settings)


class PythonModel:
    def __init__(
        self,
        config: ModelConfig,
        spec: ModelSpec,
        files: ModelFiles,
        host: Host,
        stats: ModelStats,
        settings: Settings,
    ) -> None:
        self._config = config
        self._spec = spec
        self._files = files
        self._host = host
        self._stats = stats
        self._settings = settings
        self._instances: list[PythonInstance] = []

    def instance(self, placement: Placement) -> PythonInstance:
        launch = _launch(self._config, self._files, self._settings, placement.name, placement, self._host)
        instance = PythonInstance(self._spec, self._stats, self._host.loop, launch)
        self._instances = [*[each for each in self._instances if not each.closed], instance]
        return instance

    def ready(self) -> bool:
        return all([instance.ready() for instance in self._instances if not instance.closed])  # noqa: C419  each is to be asked

    def close(self) -> None:
        """Instances are closed by who made them; again does no harm."""
        for instance in self._instances:
            instance.close()
        self._instances.clear()


def _launch(
    config: ModelConfig,
    files: ModelFiles,
    settings: Settings,
    instance: str,
    placement: Placement | None = None,
    host: Host | None = None,
    *,
    complete: bool = False,
) -> Launch:
    from conch.config.json import to_json  # noqa: PLC0415  protobuf's JSON is not needed before a model is loaded

    file = files.version_directory / (config.default_model_filename or "model.py")
    arguments = {
        "model_config": to_json(config).decode(),
        "model_instance_kind": placement.kind if placement is not None else "CPU",
        "model_instance_name": instance,
        "model_instance_device_id": str(placement.device_id if placement is not None else 0),
        "model_repository": str(files.directory),
        "model_version": str(files.version),
        "model_name": config.name,
    }
    start: dict[str, Any] = {
        "file": str(file),
        "repository": str(files.directory),
        "instance": instance,
        "complete": complete,
        "decoupled": config.model_transaction_policy.decoupled,
        "concurrent": concurrency(config),
        "verbose": verbose(),
        "arguments": arguments,
    }
    return Launch(
        config.name,
        instance or config.name,
        interpreter(config, files),
        start,
        settings,
        None if host is None else host.models,
        None if host is None else host.metrics,
        frozenset() if placement is None else placement.cores,
    )
