"""From a backend's name to the backend: in the operator's folder, built in, or in an installed package."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final, cast

from conch.backend.api import Backend, ModelFiles
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError, internal, invalid

_LOG = logging.getLogger("conch.backend")

#: Backend name -> module and class; each is imported when the first model asks for it.
BACKENDS = {
    "dali": ("conch.backend.dali.backend", "DaliBackend"),
    "fault": ("conch.backend.sample.fault", "FaultBackend"),
    "fil": ("conch.backend.forest", "ForestBackend"),
    "identity": ("conch.backend.identity", "IdentityBackend"),
    "onnxruntime": ("conch.backend.onnx", "OnnxBackend"),
    "openvino": ("conch.backend.openvino.backend", "OpenvinoBackend"),
    "python": ("conch.backend.python.backend", "PythonBackend"),
    "pytorch": ("conch.backend.torch.backend", "TorchBackend"),
    "repeat": ("conch.backend.sample.repeat", "RepeatBackend"),
    "square": ("conch.backend.sample.square", "SquareBackend"),
    "tensorflow": ("conch.backend.tensorflow", "TensorFlowBackend"),
    "tensorrt": ("conch.backend.tensorrt.backend", "TensorRtBackend"),
}
#: Where packages name their backends.
ENTRY_POINTS: Final = "conch.backends"
#: Where Triton's containers have their backends, and so the default of `--backend-directory`.
DIRECTORY: Final = Path("/opt/tritonserver/backends")

#: Packages that users have to add -> the extra of ours that brings them.
_EXTRAS = {"fil": "forest", "onnxruntime": "onnx", "openvino": "openvino", "pytorch": "torch"}
#: Built-in backends that are Python-based, or run some of their models as Python models run.
_ON_PYTHON: Final = frozenset({"dali", "fault", "pytorch", "tensorflow"})
#: The program of a Python-based backend.
_PROGRAM: Final = "model.py"
#: Built-in backends that read the config's `runtime` themselves, and what they know.
_RUNTIMES: Final[dict[str, tuple[str, ...]]] = {"pytorch": (_PROGRAM,)}


class Backends:
    """The backends of one server. Any thread; has no state but the names that were asked for."""

    def __init__(self, directory: Path = DIRECTORY, own: Mapping[str, Backend] | None = None) -> None:
        """`own` are backends of this server alone: functions of the program that it is a part of."""
        self._directory = directory
        self._own = own or {}
        #: Name -> where it lies, for the table at start-up.
        self._used: dict[str, str] = {}

    def find(self, name: str) -> Backend:
        """The backend called `name`. Raises InferError where there is none, or its packages are not installed.

        The operator's folder goes first, but not over a native library that we have a backend for.
        """
        if name in self._own:
            return self._own[name]
        if self.is_based(name):
            from conch.backend.python.based import BasedBackend  # noqa: PLC0415  few servers have one

            folder = self._directory / name
            self._used[name] = str(folder / _PROGRAM)
            return BasedBackend(name, folder)
        if name in BACKENDS:
            self._used[name] = BACKENDS[name][0]
            return _built_in(name)
        for point in entry_points(group=ENTRY_POINTS, name=name):
            self._used[name] = f"{point.value} ({ENTRY_POINTS})"
            return _installed(point)
        packages = sorted(entry_points(group=ENTRY_POINTS).names)
        raise invalid(
            f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration.",
            f"backends of this server: {', '.join([*sorted(BACKENDS), *packages])}; a Python-based one would be "
            f"'{self._directory / name / _PROGRAM}'",
        )

    def is_based(self, name: str) -> bool:
        """Whether the operator's folder holds a Python-based backend of that name."""
        folder = self._directory / name
        if not name or "/" in name or name.startswith(".") or not (folder / _PROGRAM).is_file():
            return False
        return name not in BACKENDS or (name != "python" and not (folder / f"libtriton_{name}.so").is_file())

    def is_python(self, name: str) -> bool:
        """Whether models of that backend run as Python models do, and have its settings."""
        return name in _ON_PYTHON or self.is_based(name)

    def used(self) -> list[tuple[str, str]]:
        """Name and place of the backends that models have asked for."""
        return sorted(self._used.items())

    def check_runtime(self, config: ModelConfig, files: ModelFiles) -> None:
        """Raises InferError, with Triton's texts, where the config asks for a runtime that its backend has not."""
        name, runtime = config.backend, config.runtime
        if runtime in ("", f"libtriton_{name}.so", *_RUNTIMES.get(name, ())):
            return
        if runtime == _PROGRAM and self.is_based(name):
            return
        folder = self._directory / name
        if runtime == _PROGRAM:
            raise invalid(
                f"unable to find Python backend based backend library '{runtime}' for model '{config.name}', searched: "
                f"'{folder / runtime}'",
                "put the backend's program there, or remove 'runtime' from the config",
            )
        searched = " ".join([f"'{each}'" for each in (files.version_directory, files.directory, folder)])
        raise invalid(
            # With the space at its end, as Triton has it.
            f"unable to find backend library '{runtime}' for model '{config.name}', searched: {searched} ",
            "native libraries of Triton are not loaded: write the backend in Python (docs/backends.md), or remove "
            "'runtime' to use this server's own",
        )


def find_backend(name: str) -> Backend:
    """The backend of that name where no server says where its operator's lie. Raises InferError."""
    return Backends().find(name)


def _built_in(name: str) -> Backend:
    module, attribute = BACKENDS[name]
    try:
        make = cast("Callable[[], Backend]", getattr(importlib.import_module(module), attribute))
        return make()
    except ImportError as error:
        extra = _EXTRAS.get(name)
        fix = f"pip install 'conch[{extra}]'" if extra else "reinstall conch"
        raise invalid(
            f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration.",
            f"{error}; {fix}",
        ) from error


def _installed(point: EntryPoint) -> Backend:
    """The backend that a package brings, behind guards: its faults are its models' alone."""
    from conch.backend.foreign import ForeignBackend, check_backend  # noqa: PLC0415  few servers have one

    package = "" if point.dist is None else f" of package '{point.dist.name}'"
    about = f"backend '{point.name}'{package} ({point.value})"
    try:
        made = point.load()()
    except InferError:
        raise
    except BaseException as error:
        _LOG.exception("%s cannot be made", about)
        raise internal(f"{about} cannot be made: {type(error).__name__}: {error}") from error
    check_backend(made, about)
    return ForeignBackend(point.name, made, about)
