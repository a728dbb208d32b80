"""From what a repository holds of a model to its config, before any backend has looked at it."""

from __future__ import annotations

from conch.config.autofill import fill_backend
from conch.config.json import parse_json
from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.rules import validate
from conch.pb.model_config_pb2 import ModelConfig
from conch.repository.api import StoredModel
from conch.types.error import InferError, internal, invalid


def prepare(stored: StoredModel, *, auto_complete: bool) -> ModelConfig:
    """The model's config: read, its backend settled, normalised and checked. Raises InferError.

    Inputs and outputs are checked only where no backend will fill them in (`auto_complete` off).
    """
    config = _parse(stored, auto_complete=auto_complete)
    folders = [stored.directory / str(number) for number in stored.versions]
    fill_backend(config, stored.name, folders)
    normalize(config)
    validate(config, check_io=not auto_complete)
    return config


def _parse(stored: StoredModel, *, auto_complete: bool) -> ModelConfig:
    if stored.config_text is None:
        if not auto_complete:
            raise internal(
                f"failed to open text file for read {stored.config_source}: No such file or directory",
                "without auto-completion every model needs a config.pbtxt",
            )
        return ModelConfig()
    if not stored.override:
        return parse_text(stored.config_text, stored.config_source)
    try:
        return parse_json(stored.config_text)
    except InferError as error:
        prefix = "Invalid config override: "
        raise invalid(prefix + error.message.removeprefix(prefix), error.hint) from error
