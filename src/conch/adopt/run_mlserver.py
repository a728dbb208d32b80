"""Runs a custom MLServer runtime as a Python model, in the worker process: its `load` and `predict` as they are."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from conch.adopt import shim_mlserver as shim

#: The folder for what lay elsewhere.
ELSEWHERE: Final = "artefact"


def serve(folder: Path, implementation: str) -> type:
    """The `TritonPythonModel` for the class of that name beside the settings in `folder`."""
    settings: dict[str, Any] = json.loads((folder / "model-settings.json").read_bytes())

    class TritonPythonModel:
        async def initialize(self, args: dict[str, str]) -> None:
            shim.install()
            sys.path.insert(0, str(folder))
            module, _, kind = implementation.rpartition(".")
            runtime = getattr(importlib.import_module(module), kind)
            types = importlib.import_module("mlserver.types")
            self._request, self._input = types.InferenceRequest, types.RequestInput
            self._wanted = types.RequestOutput
            self._model = runtime(_settings(settings, args["model_name"], folder))
            loaded = self._model.load()
            if inspect.isawaitable(loaded):
                loaded = await loaded
            if loaded is False:
                raise RuntimeError(f"load() of {implementation} returned False")
            self._model.ready = True

        async def execute(self, requests: list[Any]) -> list[Any]:
            # One by one, as MLServer does: a runtime need not be ready for calls that overlap.
            return [await self._answer(request) for request in requests]

        async def _answer(self, request: Any) -> Any:
            pb = sys.modules["triton_python_backend_utils"]
            try:
                answer = self._model.predict(self._payload(request))
                if inspect.isawaitable(answer):
                    answer = await answer
                return pb.InferenceResponse([pb.Tensor(each.name, to_array(each)) for each in answer.outputs])
            except Exception as error:  # noqa: BLE001  the runtime's code
                return pb.InferenceResponse(error=pb.TritonError(f"{type(error).__name__}: {error}"))

        def _payload(self, request: Any) -> Any:
            inputs = []
            for tensor in request.inputs():
                array = tensor.as_numpy()
                name = "BYTES" if array.dtype == object else shim.NAMES[array.dtype]
                inputs.append(
                    self._input(
                        name=tensor.name(), shape=list(array.shape), datatype=name, data=array.reshape(-1).tolist()
                    )
                )
            wanted = [self._wanted(name=name) for name in request.requested_output_names()]
            return self._request(id=request.request_id() or None, inputs=inputs, outputs=wanted or None)

        async def finalize(self) -> None:
            unload = getattr(self._model, "unload", None)
            if unload is not None:
                done = unload()
                if inspect.isawaitable(done):
                    await done

    return TritonPythonModel


def to_array(output: Any) -> np.ndarray[Any, Any]:
    """A ResponseOutput's data as an array of its shape and data type."""
    data = getattr(output.data, "root", output.data)
    if output.datatype == "BYTES":
        elements = [data] if isinstance(data, str | bytes) else list(data)
        flat = np.empty(len(elements), dtype=object)
        flat[:] = elements
        return flat.reshape(output.shape)
    return np.asarray(data, shim.NUMPY[output.datatype]).reshape(output.shape)


def artefact(folder: Path, uri: str) -> str:
    """Where the file or folder of `parameters.uri` lies now; the same again for what was not taken along."""
    if "://" in uri and not uri.startswith("file://"):
        return uri
    path = Path(uri.removeprefix("file://"))
    outside = path.is_absolute() or ".." in path.parts
    place = folder / ELSEWHERE / path.name if outside else folder / path
    return str(place) if place.exists() else uri


def _settings(settings: dict[str, Any], name: str, folder: Path) -> Any:
    """MLServer's own settings object where it is installed, else ours."""
    package = importlib.import_module("mlserver")
    parameters = dict(settings.get("parameters") or {})
    uri = str(parameters.get("uri") or "")
    if uri:
        parameters["uri"] = artefact(folder, uri)
    described = {**settings, "name": name, "parameters": parameters}
    if package.ModelSettings is shim.ModelSettings:
        return shim.ModelSettings(described)
    return package.ModelSettings(**described)
