"""Small PyTorch models, and one call that loads one the way the server does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format

from conch.backend.api import ModelFiles, Placement
from conch.backend.torch.backend import TorchBackend
from conch.config.sequence_tensors import with_hidden_tensors
from conch.config.spec import model_spec
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from support.onnx_models import Served, make_host


def add_sub() -> torch.nn.Module:
    """Two inputs, a tuple of sum and difference."""

    class AddSub(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a - b

    return AddSub().eval()


def script(module: torch.nn.Module) -> Callable[[Path], None]:
    """Writes it as TorchScript."""

    def write(path: Path) -> None:
        with warnings.catch_warnings():
            # TorchScript warns of its own deprecation.
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(module), str(path))

    return write


def exported(
    module: torch.nn.Module, arguments: tuple[Any, ...], dynamic: Any = None, **named: Any
) -> Callable[[Path], None]:
    """Writes it as a program of torch.export."""

    def write(path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(module, arguments, named, dynamic_shapes=dynamic), str(path))

    return write


def config(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def serve(
    directory: Path,
    write: Callable[[Path], None],
    text: str = "",
    *,
    filename: str = "model.pt",
    placement: Placement | None = None,
    settings: Mapping[str, str] | None = None,
) -> Served:
    """Write, complete, load, and make one instance."""
    parsed = config(text)
    parsed.name = parsed.name or "m"
    parsed.backend = "pytorch"
    parsed.default_model_filename = parsed.default_model_filename or filename
    version = directory / "1"
    version.mkdir(parents=True, exist_ok=True)
    write(version / filename)
    files, host = ModelFiles(directory, 1), make_host(settings or {})
    backend = TorchBackend()
    backend.complete(parsed, files, host)
    spec = with_hidden_tensors(model_spec(parsed, 1), parsed)
    stats = ModelStats()
    loaded = backend.load(parsed, spec, files, host, stats)
    return Served(parsed, spec, stats, loaded.instance(placement or Placement("m_0_0", "CPU")))
