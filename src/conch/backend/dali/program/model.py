"""Runs DALI pipelines in a worker process: all requests of a batch in one run of the pipeline."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conch.backend.dali.described import Description, Port, UnreadableError, describe
from conch.backend.python import pb_utils
from conch.backend.python.errors import Refusal


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any, args: dict[str, str]) -> Any:
        """Fills what the pipeline says of itself; names and dims of the config win where they fit."""
        told = json.loads(args["dali"])
        description = _described(args["model_name"], told)[1]
        given = config.as_dict()
        _complete(config, "input", _by_name(given.get("input", ()), description.inputs), told["batched"])
        _complete(config, "output", _by_place(args["model_name"], given, description.outputs), told["batched"])
        if told["batched"]:
            if not given.get("max_batch_size"):
                config.set_max_batch_size(description.batch_size)
            if "sequence_batching" not in given:
                config.set_dynamic_batching()
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Raises Refusal, in words, where the pipeline cannot be built."""
        self._model = args["model_name"]
        self._told = json.loads(args["dali"])
        self._message, description = _described(self._model, self._told)
        config = json.loads(args["model_config"])
        if description.gpu and self._told["device"] is None:
            raise Refusal(
                f"unable to load model '{self._model}', its DALI pipeline has operators on a GPU and the instance is "
                "on a CPU (set instance_group { kind: KIND_GPU }, or use device='cpu' in the pipeline)"
            )
        self._inputs = [entry["name"] for entry in config["input"]]
        self._outputs = [entry["name"] for entry in config["output"]]
        _by_place(self._model, config, description.outputs)
        missing = {port.name for port in description.inputs} ^ set(self._inputs)
        if missing:
            raise Refusal(
                f"unable to load model '{self._model}', its configuration has the inputs {self._inputs}, the DALI "
                f"pipeline has {[port.name for port in description.inputs]} (give fn.external_source a dtype and an "
                "ndim, or write the inputs into config.pbtxt)"
            )
        self._size = self._told["max_batch_size"] or description.batch_size
        self._pipeline = self._build()

    def execute(self, requests: list[Any]) -> list[Any]:
        if len(requests) > 1:
            with contextlib.suppress(Exception):
                return self._run(requests)
        # Whatever is wrong with one request is no fault of the others.
        responses = []
        for request in requests:
            try:
                responses += self._run([request])
            except Exception as error:  # noqa: BLE001  whatever a pipeline does
                text = f"DALI Backend error: {_words(error)}"
                responses.append(pb_utils.InferenceResponse([], pb_utils.TritonError(text)))
        return responses

    def finalize(self) -> None:
        self._pipeline = None

    def _build(self) -> Any:
        dali = _dali(self._model)
        try:
            pipeline = dali.Pipeline.deserialize(
                self._message,
                batch_size=self._size,
                num_threads=self._told["threads"],
                device_id=self._told["device"],
                # One batch at a time: nothing is prefetched, because inputs are fed.
                exec_async=False,
                exec_pipelined=False,
                prefetch_queue_depth=1,
            )
            pipeline.build()
        except Exception as error:
            raise Refusal(
                f"unable to load model '{self._model}', DALI cannot build its pipeline: {_words(error)}"
            ) from error
        return pipeline

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        columns = [[_array(request, name) for request in requests] for name in self._inputs]
        rows = [len(array) for array in columns[0]] if columns else [1]
        # After a run that failed, or that was fed in part, a pipeline cannot be run again.
        pipeline = self._build() if self._pipeline is None else self._pipeline
        self._pipeline = None
        for name, column in zip(self._inputs, columns):  # noqa: B905  Python 3.9 has no `strict`
            pipeline.feed_input(name, [sample for array in column for sample in array])
        outputs = [_samples(output) for output in pipeline.run()]
        self._pipeline = pipeline
        responses = []
        begin = 0
        for count in rows:
            tensors = [
                pb_utils.Tensor(name, self._rows(name, samples[begin : begin + count]))
                for name, samples in zip(self._outputs, outputs)  # noqa: B905
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
            begin += count
        return responses

    def _rows(self, name: str, samples: Any) -> Any:
        """One request's rows of an output."""
        if name in self._told["split"]:
            return np.concatenate(list(samples))
        if isinstance(samples, np.ndarray):
            return samples
        shapes = {sample.shape for sample in samples}
        if len(shapes) > 1:
            raise ValueError(
                f"output '{name}' has samples of the shapes {sorted(shapes)} in one request: all rows of a request "
                "have one shape, pad them in the pipeline or send them one by one"
            )
        return np.stack(samples)


def _described(model: str, told: dict[str, Any]) -> tuple[bytes, Description]:
    """The serialized pipeline of the model's file, and what it says. Raises Refusal."""
    path = Path(told["path"])
    dali = _dali(model)
    for library in told["plugins"]:
        try:
            dali.plugin_manager.load_library(library)
        except Exception as error:
            raise Refusal(f"unable to load DALI's plugin library '{library}': {_words(error)}") from error
    message = _serialize(model, path) if path.suffix == ".py" else path.read_bytes()
    try:
        return message, describe(message)
    except UnreadableError as error:
        raise Refusal(f"unable to load model '{model}', '{path}' cannot be read: {error}") from error


def _serialize(model: str, path: Path) -> bytes:
    """The pipeline that the file defines. Raises Refusal unless there is exactly one that is marked."""
    spec = importlib.util.spec_from_file_location("dali_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refusal(f"unable to load model '{model}', '{path}' cannot be run: {_words(error)}") from error
    marked = [each for each in vars(module).values() if getattr(each, "_is_autoserialize", False)]
    if len(marked) != 1:
        raise Refusal(
            f"unable to load model '{model}', '{path}' has {len(marked)} pipelines that are marked with "
            "@nvidia.dali.plugin.triton.autoserialize, expected one"
        )
    try:
        with contextlib.suppress(RuntimeError):
            return bytes(marked[0]().serialize())
        # A definition that names a device, on a machine without one: it may do without.
        return bytes(marked[0](device_id=None).serialize())
    except Exception as error:
        raise Refusal(f"unable to load model '{model}', '{path}' makes no pipeline: {_words(error)}") from error


def _complete(config: Any, kind: str, pairs: Sequence[tuple[dict[str, Any], Port]], batched: bool) -> None:
    for given, port in pairs:
        dims = given.get("dims")
        if not dims:
            if port.rank is None:
                continue
            dims = [-1] * port.rank if batched else [-1] * (port.rank + 1)
        stated = given.get("data_type", "TYPE_INVALID")
        data_type = port.data_type or stated
        if data_type == "TYPE_INVALID":
            continue
        name = given.get("name") or port.name
        if port.rank is not None and len(dims) != port.rank + (not batched):
            raise Refusal(
                f'Mismatch in number of dimensions for "{name}"\nNumber of dimensions defined in config: '
                f"{len(dims)}\nNumber of dimensions defined in pipeline: {port.rank + (not batched)}"
            )
        if stated not in ("TYPE_INVALID", data_type):
            raise Refusal(
                f'Mismatch of data_type config for "{name}".\nData type defined in config: {stated}\n'
                f"Data type defined in pipeline: {data_type}"
            )
        getattr(config, f"add_{kind}")({"name": name, "data_type": data_type, "dims": dims})


def _by_name(given: Sequence[dict[str, Any]], ports: Sequence[Port]) -> list[tuple[dict[str, Any], Port]]:
    known = {entry.get("name"): entry for entry in given}
    return [(known.get(port.name, {}), port) for port in ports]


def _by_place(model: str, config: dict[str, Any], ports: Sequence[Port]) -> list[tuple[dict[str, Any], Port]]:
    """Outputs are the pipeline's in order, whatever the config calls them. Raises Refusal where the numbers differ."""
    given = config.get("output") or [{}] * len(ports)
    if len(given) != len(ports):
        raise Refusal(
            f"unable to load model '{model}', the number of outputs specified in the DALI pipeline and the "
            f"configuration file do not match. Model config outputs: {len(given)}, pipeline outputs: {len(ports)}"
        )
    return list(zip(given, ports))  # noqa: B905  as many, see above


def _dali(model: str) -> Any:
    try:
        from nvidia import dali  # noqa: PLC0415  seconds long: after all that can go wrong without it
        from nvidia.dali import plugin_manager  # noqa: F401, PLC0415  it is no part of the package until imported
    except ImportError as error:
        missing = (error.name or "nvidia").startswith("nvidia")
        why = "is not installed in the Python that runs it" if missing else f"cannot be imported: {error}"
        raise Refusal(
            f"unable to load model '{model}', DALI {why} (pip install 'conch[dali]', or name an environment that has "
            "it in the parameter EXECUTION_ENV_PATH)"
        ) from error
    return dali


def _array(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    assert tensor is not None
    return tensor.as_numpy()


def _samples(output: Any) -> Any:
    """An output's samples: an array where all have one shape, else a list of arrays."""
    if hasattr(output, "as_cpu"):
        output = output.as_cpu()
    # The pipeline's next run may use its memory again.
    if output.is_dense_tensor():
        return np.array(output.as_tensor())
    return [np.array(output[index]) for index in range(len(output))]


def _words(error: Exception) -> str:
    """What happened, without DALI's tracebacks of its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Assert on") or "failed:" in line]
    return (told or lines or [type(error).__name__])[0]
