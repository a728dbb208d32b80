"""Runs exported models with the frameworks that will serve them, to compare."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from conch.export.api import Array, Call, ExportError, Written


@contextmanager
def opened(written: Written) -> Iterator[Call]:
    """A call of the exported model; its outputs are in its own order and by its own names."""
    with tempfile.TemporaryDirectory(prefix="conch-export-") as folder:
        for name, content in {written.filename: written.content, **written.more}.items():
            (Path(folder) / name).write_bytes(content)
        path = Path(folder) / written.filename
        yield _OPEN[written.backend](path)


def _onnx(path: Path) -> Call:
    import onnxruntime  # noqa: PLC0415  heavy

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return call


def _openvino(path: Path) -> Call:
    openvino = need("openvino", "openvino")
    # Elsewhere than in the server, the default precision depends on the machine.
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [each.get_any_name() for each in model.outputs]

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        found = model(dict(inputs))
        return {name: np.array(found[index]) for index, name in enumerate(names)}

    return call


def _torch(path: Path) -> Call:
    torch = need("torch", "torch")
    with warnings.catch_warnings():
        # TorchScript warns of its own deprecation.
        warnings.simplefilter("ignore")
        module = torch.export.load(str(path)).module() if path.suffix == ".pt2" else torch.jit.load(str(path))

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            answer = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return named(answer)

    return call


def named(answer: Any) -> dict[str, Array]:
    """What a PyTorch model returned, as arrays by name: a dictionary's keys, else `OUTPUT__<place>`."""
    import torch  # noqa: PLC0415  whoever has an answer has it

    if isinstance(answer, torch.Tensor):
        answer = (answer,)
    items = answer.items() if isinstance(answer, Mapping) else ((f"OUTPUT__{n}", each) for n, each in enumerate(answer))
    found = {name: each for name, each in items if isinstance(each, torch.Tensor)}
    if not found:
        raise ExportError("the model returns no tensor")
    return {name: each.detach().cpu().numpy() for name, each in found.items()}


def need(package: str, extra: str) -> Any:
    """The package. Raises ExportError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        what = f"pip install 'conch[{extra}]'" if extra else f"pip install {package}"
        raise ExportError(f"this export needs {package}, which is not installed: {error}", what) from None


_OPEN: Final[dict[str, Callable[[Path], Call]]] = {"onnxruntime": _onnx, "openvino": _openvino, "pytorch": _torch}
