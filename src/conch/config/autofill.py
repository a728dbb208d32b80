"""Settles a model's name, backend, platform and file from what its config says and its version folder holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid


@dataclass(frozen=True, slots=True)
class _Framework:
    """One row: a model file and the backend that reads it.

    `platform` is the legacy name that the config gets (empty for none), `aliases` what it may be called as well.
    With `directory` the file must be a folder (True), a plain file (False), or may be either (None).
    """

    backend: str
    filename: str
    platform: str = ""
    aliases: tuple[str, ...] = ()
    directory: bool | None = None


#: In order: a step that settles the backend is the last one.
_FRAMEWORKS: Final = (
    _Framework("tensorflow", "model.savedmodel", "tensorflow_savedmodel", directory=True),
    _Framework("tensorflow", "model.graphdef", "tensorflow_graphdef", directory=False),
    _Framework("tensorrt", "model.plan", "tensorrt_plan"),
    _Framework("onnxruntime", "model.onnx", "onnxruntime_onnx"),
    _Framework("openvino", "model.xml"),
    _Framework("pytorch", "model.pt", "pytorch_libtorch", aliases=("libtorch",)),
    _Framework("pytorch", "model.pt2", "torch_aoti"),
    _Framework("python", "model.py"),
)

#: The platform that each backend's models have, where a config names one: the platform's name -> its backend.
PLATFORMS: Final[Mapping[str, str]] = {row.platform: row.backend for row in _FRAMEWORKS if row.platform}


def fill_backend(config: ModelConfig, model_name: str, versions: Sequence[Path]) -> None:
    """Fill `config` in place. `versions` are the model's version folders; the first in string order is looked into.

    Raises InferError (INVALID_ARG) when the config has another name than the model's folder, or when nothing tells
    which backend the model needs.
    """
    first = min(versions, key=lambda path: path.name, default=None)
    settle(config, model_name, _content(first) if first is not None and _says_nothing(config) else {})


def settle(config: ModelConfig, model_name: str, content: Mapping[str, bool]) -> None:
    """The rule itself, pure: `content` is what the version folder holds, name -> whether it is a folder."""
    if not config.name:
        config.name = model_name
    elif config.name != model_name:
        raise invalid(
            f"unexpected directory name '{model_name}' for model '{config.name}', directory name must equal model name",
            f"rename the folder to '{config.name}', or remove 'name' from the config",
        )
    if config.platform == "ensemble":
        return
    row = _match(config, content)
    if row is not None:
        config.backend = row.backend
        config.default_model_filename = config.default_model_filename or row.filename
        if not config.platform or config.platform in row.aliases:
            config.platform = row.platform
    elif _says_nothing(config):
        _custom(config, content)


def _says_nothing(config: ModelConfig) -> bool:
    return not (config.backend or config.platform or config.default_model_filename)


def _match(config: ModelConfig, content: Mapping[str, bool]) -> _Framework | None:
    if config.backend:
        rows = [row for row in _FRAMEWORKS if row.backend == config.backend]
        for row in rows:
            if config.platform and config.platform in (row.platform, *row.aliases):
                return row
        for row in rows:
            if not config.platform and config.default_model_filename == row.filename:
                return row
        # TensorFlow's two kinds of models differ in platform alone, so no kind can be taken for granted.
        return rows[0] if rows and rows[0].backend != "tensorflow" else None
    for row in _FRAMEWORKS:
        if config.platform:
            found = config.platform in (row.platform, *row.aliases)
        elif config.default_model_filename:
            found = config.default_model_filename == row.filename
        else:
            found = row.filename in content and row.directory in (None, content[row.filename])
        if found:
            return row
    return None


def _custom(config: ModelConfig, content: Mapping[str, bool]) -> None:
    """A model that says nothing and holds nothing known must name its backend: `x.<backend>`."""
    _, _, backend = config.name.partition(".")
    if not backend:
        held = (
            f"the version folder holds: {', '.join(sorted(content)[:10])}"
            if content
            else "no version folder holds files"
        )
        raise invalid(
            f"Invalid model name: Could not determine backend for model '{config.name}' with no backend in model "
            "configuration. Expected model name of the form 'model.<backend_name>'.",
            f'write backend: "..." into config.pbtxt, or give the model\'s file a default name such as '
            f"{', '.join(row.filename for row in _FRAMEWORKS if row.backend in ('onnxruntime', 'python'))} ({held})",
        )
    config.backend = backend
    config.default_model_filename = f"model.{backend}"


def _content(version: Path) -> Mapping[str, bool]:
    try:
        return {entry.name: entry.is_dir() for entry in version.iterdir()}
    except OSError:
        return {}
