"""Runs in worker processes: an AOTInductor package, or the torch.nn.Module of somebody's Python file.

It knows nothing of the server but the names of its tensors; Triton's `pb_utils` is what it speaks.
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found,unused-ignore]

from conch.backend.torch.module import open_module
from conch.backend.torch.naming import Bindings, Wanted, bind, no_output
from conch.backend.torch.package import open_package
from conch.types.error import InferError

#: Triton's names of torch's types.
_NAMES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        told = self._told = json.loads(args["conch_torch"])
        config = json.loads(args["model_config"])
        self._batching = config.get("max_batch_size", 0) > 0
        self._types = {each["name"]: each["data_type"].removeprefix("TYPE_") for each in config["output"]}
        self._device = _device(args["model_instance_kind"], args["model_instance_device_id"], args["model_name"])
        torch.set_num_threads(told["threads"])
        if told["inter_op_threads"]:
            torch.set_num_interop_threads(told["inter_op_threads"])
        torch.backends.cudnn.enabled = told["cudnn"]
        self._mode = torch.inference_mode if told["inference_mode"] else torch.no_grad
        names = {key: tuple(value) for key, value in told["wanted"].items()}
        wanted = Wanted(told["model"], **names)
        try:
            self._program = open_package(told, self._device) if told["package"] else open_module(told, self._device)
            self._bindings: Bindings = bind(wanted, self._program.signature)
        except InferError as error:
            raise pb_utils.TritonModelException(
                f"{error.message} ({error.hint})" if error.hint else error.message
            ) from None
        for text in (*self._program.warnings, *self._bindings.warnings):
            pb_utils.Logger.log_warn(text)
        # Said once per process, of memory that nobody else reads.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(b"\0", np.uint8))

    def execute(self, requests: list[Any]) -> list[Any]:
        groups = [requests] if self._batching else [[request] for request in requests]
        responses: list[Any] = []
        for group in groups:
            try:
                with self._mode():
                    responses += self._run(group)
            except InferError as error:
                responses += _failed(group, error.message)
            except Exception as error:  # noqa: BLE001  whatever the model raises
                responses += _failed(group, f"PyTorch execute failure: {error}")
        if self._told["cache_cleaning"] and torch.cuda.is_available():
            torch.cuda.empty_cache()
        return responses

    def _run(self, requests: list[Any]) -> list[Any]:
        """Requests that one run of the model answers."""
        arguments = {}
        rows = [0] * len(requests)
        for name, index in self._bindings.inputs.items():
            parts = [tensor for request in requests if (tensor := self._tensor(request, name)) is not None]
            if not parts:
                continue
            rows = [len(part) for part in parts] if self._batching else rows
            gathered = parts[0] if len(parts) == 1 else torch.cat(parts)
            arguments[index] = gathered if self._device is None else gathered.to(self._device)
        answer = self._program(arguments, self._bindings.inputs)
        wanted = set().union(*[request.requested_output_names() for request in requests])
        outputs = {name: self._output(answer, name) for name in self._bindings.outputs if name in wanted}
        if len(requests) == 1:
            return [_response(requests[0], outputs)]
        for name, tensor in outputs.items():
            if not tensor.dim() or len(tensor) != sum(rows):
                raise InferError(
                    pb_code(),
                    f"output '{name}' has shape {list(tensor.shape)}, expected {sum(rows)} rows in its first dimension "
                    f"for a batch of {sum(rows)}",
                )
        split = {name: torch.split(tensor, rows) for name, tensor in outputs.items()}
        return [
            _response(request, {name: parts[place] for name, parts in split.items()})
            for place, request in enumerate(requests)
        ]

    def _tensor(self, request: Any, name: str) -> Any:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        # numpy does not know BF16.
        return torch.from_dlpack(tensor.to_dlpack()) if _is_bf16(tensor) else torch.from_numpy(tensor.as_numpy())

    def _output(self, answer: Any, name: str) -> Any:
        if isinstance(answer, dict) and name in answer:
            value = answer[name]
        else:
            values = list(answer.values()) if isinstance(answer, dict) else answer
            index = self._bindings.outputs[name]
            if index >= len(values):
                raise no_output(name, len(values), answer if isinstance(answer, dict) else ())
            value = values[index]
        found = _NAMES.get(str(value.dtype).removeprefix("torch."), str(value.dtype))
        if name in self._types and found != self._types[name]:
            raise InferError(
                pb_code(),
                f"configuration expects datatype TYPE_{self._types[name]} for output '{name}', "
                f"model provides TYPE_{found}",
            )
        if not value.dim():
            raise InferError(pb_code(), f"output '{name}' is a scalar which is not supported.")
        return value.detach().cpu().contiguous()


def pb_code() -> Any:
    from conch.types.error import Code  # noqa: PLC0415

    return Code.INVALID_ARG


def _is_bf16(tensor: Any) -> bool:
    return bool(tensor.triton_dtype() == 14)


def _response(request: Any, outputs: dict[str, Any]) -> Any:
    names = set(request.requested_output_names())
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor.from_dlpack(name, tensor) for name, tensor in outputs.items() if name in names]
    )


def _failed(requests: list[Any], text: str) -> list[Any]:
    return [pb_utils.InferenceResponse([], error=pb_utils.TritonError(text)) for _ in requests]


def _device(kind: str, device_id: str, model: str) -> str | None:
    """None for KIND_MODEL: the module says where it computes."""
    kind = kind.removeprefix("KIND_")
    if kind == "MODEL":
        return None
    if kind != "GPU":
        return "cpu"
    if not torch.cuda.is_available():
        raise pb_utils.TritonModelException(
            f"model '{model}' is to run on GPU {device_id} and this PyTorch ({torch.__version__}) finds none: install "
            "a PyTorch for CUDA, or write instance_group [ { kind: KIND_CPU } ]"
        )
    return f"cuda:{device_id}"
