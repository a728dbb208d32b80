"""A model's whole config before the server runs: what was written, and what the backend knows from the files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from conch.adopt.api import AdoptError, Entry
from conch.backend.api import Host, ModelFiles
from conch.backend.find import BACKENDS, find_backend
from conch.config.instances import fill_instance_groups
from conch.config.machine import cpus
from conch.config.normalize import normalize
from conch.config.rules import validate
from conch.pb.model_config_pb2 import ModelConfig
from conch.registry.loader import default_instances
from conch.registry.prepare import prepare
from conch.repository.local import LocalStore
from conch.types.error import InferError


def decide(entry: Entry, folder: Path, backends: Mapping[str, Mapping[str, str]]) -> ModelConfig:
    """The config that the server will show for the entry that was laid in `folder`. Blocking. Raises AdoptError.

    `backends` are the `--backend-config` settings.
    """
    try:
        return _decide(entry, folder, backends)
    except InferError as error:
        text = error.message
        for inside, content in entry.files.items():
            if isinstance(content, Path):
                # The person knows the file by the path that was given.
                text = text.replace(str(folder / inside), str(content))
        source = "" if str(entry.source) in text else f"{entry.source}: "
        raise AdoptError(source + text, error.hint) from error


def _decide(entry: Entry, folder: Path, backends: Mapping[str, Mapping[str, str]]) -> ModelConfig:
    stored = LocalStore([folder.parent]).fetch(folder.name)
    config = prepare(stored, auto_complete=True)
    if config.platform == "ensemble" or not stored.versions:
        return config
    try:
        backend = find_backend(config.backend)
    except InferError as error:
        if config.backend in BACKENDS:
            raise
        raise AdoptError(
            f"{entry.source} is made for Triton's backend '{config.backend}', which this server does not have",
            f"it has {', '.join(sorted(BACKENDS))}",
        ) from error
    loop = asyncio.new_event_loop()
    try:
        settings = {**backends.get("", {}), **backends.get(config.backend, {})}
        backend.complete(config, ModelFiles(stored.directory, stored.versions[-1]), Host(loop, settings, cpus()))
    finally:
        loop.close()
    normalize(config)
    validate(config, check_io=True)
    fill_instance_groups(config, (), default_instances(config))
    return config
