"""Runs TensorFlow models in a worker process: all requests of a batch in one run of the session."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from conch.backend.python import pb_utils
from conch.backend.python.errors import Refusal

#: TensorFlow's codes (those of gRPC) that have an equivalent; the others are INTERNAL.
_CODES = {3: pb_utils.TritonError.INVALID_ARG, 5: pb_utils.TritonError.NOT_FOUND, 12: pb_utils.TritonError.UNSUPPORTED}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Raises Refusal, in words, where the model cannot be opened."""
        model = args["model_name"]
        told = json.loads(args["tensorflow"])
        tf = _tensorflow(model)
        self._errors = tf.errors.OpError
        self._batching = told["batching"]
        self._inputs = [name for name, _ in told["inputs"]]
        self._outputs = [name for name, _ in told["outputs"]]
        v1 = tf.compat.v1
        self._session = v1.Session(graph=tf.Graph(), config=_options(v1, told))
        try:
            with self._session.graph.as_default():
                _open(tf, self._session, told)
                self._columns = {name: number for number, name in enumerate(self._outputs)}
                feeds = [tensor for _, tensor in told["inputs"]]
                self._run = self._session.make_callable([tensor for _, tensor in told["outputs"]], feed_list=feeds)
        except Exception as error:
            raise Refusal(f"unable to load model '{model}', TensorFlow cannot open it: {_words(error)}") from error

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        if len(requests) > 1 and self._batching:
            with contextlib.suppress(Exception):
                return self._together(requests)
            # Whatever is wrong with one request is no fault of the others.
        return [self._alone(request) for request in requests]

    def finalize(self) -> None:
        self._session.close()

    def _together(self, requests: list[pb_utils.InferenceRequest]) -> list[pb_utils.InferenceResponse]:
        columns = [[_array(request, name) for request in requests] for name in self._inputs]
        outputs = self._run(*[np.concatenate(column) for column in columns])
        ends = np.cumsum([len(array) for array in columns[0]])
        for name, output in zip(self._outputs, outputs):  # noqa: B905  Python 3.9 has no `strict`
            _check_rows(name, output, int(ends[-1]))
        begin = 0
        responses = []
        for end in ends.tolist():
            tensors = [pb_utils.Tensor(name, output[begin:end]) for name, output in zip(self._outputs, outputs)]  # noqa: B905
            responses.append(pb_utils.InferenceResponse(tensors))
            begin = end
        return responses

    def _alone(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        inputs = [_array(request, name) for name in self._inputs]
        try:
            outputs = self._run(*inputs)
            if self._batching:
                for name, output in zip(self._outputs, outputs):  # noqa: B905
                    _check_rows(name, output, len(inputs[0]))
        except Exception as error:  # noqa: BLE001  whatever a model does
            code = pb_utils.TritonError.INTERNAL
            if isinstance(error, self._errors):
                code = _CODES.get(error.error_code, code)
            return pb_utils.InferenceResponse([], pb_utils.TritonError(f"TensorFlow: {_words(error)}", code))
        tensors = [pb_utils.Tensor(name, np.asarray(output)) for name, output in zip(self._outputs, outputs)]  # noqa: B905
        return pb_utils.InferenceResponse(tensors)


def _tensorflow(model: str) -> Any:
    # What it says while it starts is nothing that an operator can act on.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    try:
        import tensorflow as tf  # noqa: PLC0415  seconds long: after all that can go wrong without it
    except ImportError as error:
        missing = error.name in (None, "tensorflow")
        why = "is not installed in the Python that runs it" if missing else f"cannot be imported: {error}"
        raise Refusal(
            f"unable to load model '{model}', TensorFlow {why} (pip install 'conch[tensorflow]', or name an "
            "environment that has it in the parameter EXECUTION_ENV_PATH)"
        ) from error
    tf.get_logger().setLevel("ERROR")
    return tf


def _options(v1: Any, told: dict[str, Any]) -> Any:
    options = v1.ConfigProto(
        intra_op_parallelism_threads=told["intra"],
        inter_op_parallelism_threads=told["inter"],
        use_per_session_threads=told["per_session"],
        allow_soft_placement=told["soft_placement"],
    )
    if not told["gpu"]:
        options.device_count["GPU"] = 0
        return options
    options.gpu_options.visible_device_list = told["gpu"]
    options.gpu_options.allow_growth = not told["gpu_fraction"]
    options.gpu_options.per_process_gpu_memory_fraction = told["gpu_fraction"]
    return options


def _open(tf: Any, session: Any, told: dict[str, Any]) -> None:
    v1 = tf.compat.v1
    if Path(told["path"]).is_dir():
        v1.saved_model.load(session, told["tags"], told["path"])
    else:
        graph = v1.GraphDef()
        graph.ParseFromString(Path(told["path"]).read_bytes())
        tf.import_graph_def(graph, name="")
    for name in told["init_ops"]:
        session.run(session.graph.get_operation_by_name(name))


def _array(request: pb_utils.InferenceRequest, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    assert tensor is not None
    return tensor.as_numpy()


def _check_rows(name: str, output: Any, rows: int) -> None:
    shape = np.shape(output)
    if not shape or shape[0] != rows:
        raise ValueError(
            f"output '{name}' has shape {list(shape)}, expected {rows} rows in its first dimension for a batch of "
            f"{rows}"
        )


def _words(error: Exception) -> str:
    """Its first line: TensorFlow adds where in its own graph and source it happened."""
    text = str(getattr(error, "message", "") or error)
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
