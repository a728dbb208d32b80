"""Which of ONNX Runtime's execution providers an instance asks for, with their options. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from conch.backend.api import Placement
from conch.backend.onnx.options import SessionPlan
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, invalid

#: A provider's name and its options.
Provider = tuple[str, dict[str, str]]

CPU: Final[Provider] = ("CPUExecutionProvider", {})

#: Accelerators of config.pbtxt -> provider, and what to install for it.
_CPU_ACCELERATORS: Final = {"openvino": ("OpenVINOExecutionProvider", "pip install onnxruntime-openvino")}
_GPU_ACCELERATORS: Final = {
    "tensorrt": (
        "TensorrtExecutionProvider",
        "pip install onnxruntime-gpu, and the TensorRT that it was built for, such as 'tensorrt<11'",
    ),
    "cuda": ("CUDAExecutionProvider", "pip install onnxruntime-gpu"),
}
_PRECISIONS: Final = {"FP32": "", "FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}
_TENSORRT: Final = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}


def on_gpu(placement: Placement) -> bool:
    return placement.kind.removeprefix("KIND_") == "GPU"


def choose_providers(
    config: ModelConfig, plan: SessionPlan, placement: Placement, available: Collection[str]
) -> list[Provider]:
    """In the order of preference; the CPU comes last, for the operators that the others lack.

    Raises InferError where ONNX Runtime would fall back in silence: the provider is not in `available`.
    """
    accelerators = config.optimization.execution_accelerators
    chosen: list[Provider] = []
    if on_gpu(placement):
        chosen += _gpu_providers(accelerators.gpu_execution_accelerator, plan, placement)
    for each in accelerators.cpu_execution_accelerator:
        name, _ = _known(each.name, _CPU_ACCELERATORS)
        chosen.append((name, {"device_type": "CPU", **dict(each.parameters)}))
    for name, _ in chosen:
        if name not in available:
            raise _missing(config.name, name, placement, available)
    return [*chosen, CPU]


def unused_accelerators(config: ModelConfig, plan: SessionPlan, placement: Placement) -> list[str]:
    """Warnings for what the config asks of a GPU when the instance is on a CPU."""
    if on_gpu(placement):
        return []
    asked = [
        f"accelerator '{each.name}'" for each in config.optimization.execution_accelerators.gpu_execution_accelerator
    ]
    asked += [f"parameter '{key}'" for key in plan.cuda_options]
    return [f"model '{config.name}': {what} has no effect on instances on a CPU" for what in asked]


def _gpu_providers(accelerators: Any, plan: SessionPlan, placement: Placement) -> list[Provider]:
    device = {"device_id": str(placement.device_id)}
    cuda = dict(plan.cuda_options)
    chosen: list[Provider] = []
    for each in accelerators:
        name, _ = _known(each.name, _GPU_ACCELERATORS)
        if each.name == "cuda":
            cuda.update(each.parameters)
        else:
            chosen.append((name, _tensorrt_options(each.parameters) | device))
    return [*chosen, ("CUDAExecutionProvider", cuda | device)]


def _tensorrt_options(parameters: Mapping[str, str]) -> dict[str, str]:
    options = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in _PRECISIONS:
                raise invalid(
                    f"unsupported precision mode '{value}' is requested", f"use one of {', '.join(_PRECISIONS)}"
                )
            if _PRECISIONS[value]:
                options[_PRECISIONS[value]] = "1"
        elif key in _TENSORRT or key.startswith("trt_"):
            options[_TENSORRT.get(key, key)] = value
        else:
            raise invalid(f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
    return options


def _known(name: str, accelerators: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if name not in accelerators:
        raise invalid(
            f"unknown Execution Accelerator '{name}' is requested", f"known here: {', '.join(sorted(accelerators))}"
        )
    return accelerators[name]


def _missing(model: str, provider: str, placement: Placement, available: Collection[str]) -> InferError:
    hints = dict([*_CPU_ACCELERATORS.values(), *_GPU_ACCELERATORS.values()])
    return InferError(
        Code.UNAVAILABLE,
        f"unable to load model '{model}', instance '{placement.name}' (KIND_{placement.kind.removeprefix('KIND_')}) "
        f"needs the {provider} and this onnxruntime has only: {', '.join(available)}",
        f"{hints[provider]}, or take the accelerator or instance group out of config.pbtxt",
    )


def check_active(model: str, asked: list[Provider], active: Collection[str]) -> None:
    """ONNX Runtime drops a provider that it cannot start and carries on. Raises InferError instead."""
    for name, _ in asked:
        if name not in active:
            raise InferError(
                Code.UNAVAILABLE,
                f"unable to load model '{model}', onnxruntime could not start the {name} and would run on: "
                f"{', '.join(active)}",
                "look for the reason in the log: a missing driver or library",
            )
