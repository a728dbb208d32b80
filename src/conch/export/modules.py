"""PyTorch modules: found in a file, called, and written as ONNX, TorchScript, torch.export or OpenVINO."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from conch.export.api import Array, Call, ExportError, Written
from conch.export.examples import Example, arrays
from conch.export.runtimes import named, need

#: What torch modules can be written as -> the file, backend and platform.
FORMATS: Final[dict[str, tuple[str, str, str]]] = {
    "onnx": ("model.onnx", "onnxruntime", ""),
    "torchscript": ("model.pt", "pytorch", "pytorch_libtorch"),
    "pt2": ("model.pt2", "pytorch", ""),
    "openvino": ("model.xml", "openvino", ""),
}


@dataclass(frozen=True, slots=True)
class _Job:
    """One file to write. `inputs` are tensors by name."""

    torch: Any
    module: Any
    inputs: Mapping[str, Any]
    path: Path
    examples: Sequence[Example]
    outputs: Sequence[str]
    batching: bool


def find_module(place: str) -> Any:
    """`FILE.py:NAME`, where NAME is a module, its class, or a function that makes it. Raises ExportError."""
    file, colon, name = place.rpartition(":")
    path = Path(file)
    if not colon or not name or path.suffix != ".py":
        raise ExportError(f"'{place}' does not say where the model is", "write FILE.py:make_model")
    if not path.is_file():
        raise ExportError(f"there is no {path}")
    torch = need("torch", "torch")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    found = getattr(module, name, None)
    if found is None:
        raise ExportError(f"{path} has no '{name}'", "it has " + ", ".join(n for n in vars(module) if n[0] != "_"))
    if not isinstance(found, torch.nn.Module) and callable(found):
        found = found()
    if not isinstance(found, torch.nn.Module):
        raise ExportError(f"'{name}' in {path} is {type(found).__name__}, expected a torch.nn.Module")
    return found


def check_names(module: Any, examples: Sequence[Example]) -> None:
    """Raises ExportError where an example is no argument of `forward`, or one that `forward` needs has no example."""
    parameters = inspect.signature(module.forward).parameters
    given = [each.name for each in examples]
    takes = ", ".join(parameters)
    unknown = [name for name in given if name not in parameters]
    if unknown:
        raise ExportError(f"forward has no argument '{unknown[0]}'", f"it has {takes}")
    missing = [
        name
        for name, each in parameters.items()
        if each.default is each.empty and name not in given and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if missing:
        raise ExportError(f"forward needs '{missing[0]}'", f"add --example {missing[0]}=FP32:1,... (it has {takes})")


def caller(module: Any) -> Call:
    """The module itself, as what the export is compared with."""
    torch = need("torch", "torch")

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            return named(module(**{name: torch.from_numpy(array) for name, array in inputs.items()}))

    return call


def write(module: Any, format: str, examples: Sequence[Example], outputs: Sequence[str], *, batching: bool) -> Written:
    """`outputs` are the names that results get where the format has names for them. Raises ExportError."""
    torch = need("torch", "torch")
    filename, backend, platform = FORMATS[format]
    # Not one row: sizes of one are taken for constants.
    rows = max(2, examples[0].shape[0]) if batching and examples[0].shape else None
    inputs = {name: torch.from_numpy(array) for name, array in arrays(examples, rows).items()}
    with tempfile.TemporaryDirectory(prefix="conch-export-") as folder, _quiet(), torch.no_grad():
        path = Path(folder) / filename
        try:
            _WRITERS[format](_Job(torch, module, inputs, path, examples, outputs, batching))
        except ExportError:
            raise
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            other = ", ".join(each for each in FORMATS if each != format)
            raise ExportError(
                f"cannot be exported to {format}: {type(error).__name__}: {text}", f"try --to {other}"
            ) from error
        more = {each.name: each.read_bytes() for each in Path(folder).iterdir() if each != path}
        return Written(filename, path.read_bytes(), backend, platform, more)


def _onnx(job: _Job) -> None:
    need("onnx", "export")
    axes = _axes(job.examples, job.batching)
    # What results have of open sizes is found by the exporter, which wants to be told all the same.
    axes.update({name: {0: "batch"} for name in job.outputs} if job.batching else {})
    job.torch.onnx.export(
        _flat(job.torch, job.module, list(job.inputs)),
        tuple(job.inputs.values()),
        str(job.path),
        input_names=list(job.inputs),
        output_names=list(job.outputs),
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def _script(job: _Job) -> None:
    # A dictionary is returned as one: `strict` refuses that.
    traced = job.torch.jit.trace(job.module, example_kwarg_inputs=dict(job.inputs), strict=False, check_trace=False)
    job.torch.jit.save(traced, str(job.path))


def _exported(job: _Job) -> None:
    export = job.torch.export
    batch = export.Dim("batch", min=1)
    dims = {
        each.name: {
            place: batch if place == 0 else export.Dim.AUTO
            for place in range(len(each.shape))
            if (place == 0 and job.batching) or place in each.open
        }
        for each in job.examples
    }
    # By name: forward may have other arguments between these.
    program = export.export(job.module, (), dict(job.inputs), dynamic_shapes=dims, strict=False)
    export.save(program, str(job.path))


def _openvino(job: _Job) -> None:
    openvino = need("openvino", "openvino")
    # By way of ONNX, which keeps names and open sizes.
    between = job.path.with_suffix(".onnx")
    _onnx(replace(job, path=between))
    openvino.save_model(openvino.convert_model(str(between)), str(job.path), compress_to_fp16=False)
    between.unlink()


def _flat(torch: Any, module: Any, names: Sequence[str]) -> Any:
    """The module with its results as a tuple of tensors."""

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *given: Any) -> Any:
            answer = self.inner(**dict(zip(names, given, strict=True)))
            if isinstance(answer, torch.Tensor):
                return answer
            values = answer.values() if isinstance(answer, Mapping) else answer
            return tuple([each for each in values if isinstance(each, torch.Tensor)])

    return Flat().eval()


def _axes(examples: Sequence[Example], batching: bool) -> dict[str, dict[int, str]]:
    axes = {}
    for each in examples:
        found = {place: f"{each.name}_{place}" for place in each.open}
        if batching:
            found[0] = "batch"
        if found:
            axes[each.name] = found
    return axes


@contextmanager
def _quiet() -> Any:
    """Exporters warn of their own age and of every branch that they pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_WRITERS: Final[dict[str, Callable[[_Job], None]]] = {
    "onnx": _onnx,
    "torchscript": _script,
    "pt2": _exported,
    "openvino": _openvino,
}
