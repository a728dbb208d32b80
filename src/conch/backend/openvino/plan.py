"""What a config and the command line ask of OpenVINO, read into one plan. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError, invalid

_HINTS: Final = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")
_OWN: Final = frozenset(
    {
        "COMPILATION_NUM_THREADS",
        "CPU_EXTENSION_PATH",
        "ENABLE_BATCH_PADDING",
        "HINT_BF16",
        "INFERENCE_NUM_THREADS",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "RESHAPE_IO_LAYERS",
        "SKIP_OV_DYNAMIC_BATCHSIZE",
        "TARGET_DEVICE",
    }
)
#: Settings of the command line: ours, and the global ones that other rooms read.
_SETTINGS: Final = frozenset(
    {"auto-complete-config", "backend-directory", "default-max-batch-size", "min-compute-capability"}
)
_DEVICE: Final = re.compile(r"[A-Z]+(\.\d+)?")
#: Devices that stand for others, which may be listed behind a colon.
_VIRTUAL: Final = frozenset({"AUTO", "MULTI", "HETERO", "BATCH"})

Property = str | int | bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One compiled model: every part of the config that OpenVINO acts on."""

    device: str = "CPU"
    #: What the operator set, by OpenVINO's names; it wins over what `cpu_properties` finds best.
    properties: Mapping[str, Property] = field(default_factory=dict)
    bf16: bool = False
    #: A library with operations of the operator's.
    extension: str = ""
    #: Inputs get the shapes that the config says, whatever the model says.
    reshape: bool = False
    #: The batch dimension is max_batch_size, not any size.
    fixed_batch: bool = False
    #: With a fixed batch: missing rows are made of zeros.
    pad: bool = False
    #: What was accepted and has no effect; logged at load.
    warnings: tuple[str, ...] = ()


def plan_model(config: ModelConfig, settings: Mapping[str, str]) -> Plan:
    """`settings` are those of `--backend-config=openvino,...`. Raises InferError, in Triton's words, for bad values."""
    values = {key: each.string_value for key, each in config.parameters.items()}
    warnings = [
        f"model '{config.name}': parameter '{key}' is not one that the openvino backend knows, it has no effect"
        # Those that begin with conch_ are the server's.
        for key in sorted(values.keys() - _OWN)
        if not key.startswith("conch_")
    ]
    warnings += [
        f"model '{config.name}': backend setting '{key}' is not one that the openvino backend knows, it has no effect"
        for key in sorted(settings.keys() - _SETTINGS)
    ]
    fixed = _switch(values, "SKIP_OV_DYNAMIC_BATCHSIZE") and config.max_batch_size > 0
    pad = _switch(values, "ENABLE_BATCH_PADDING")
    if pad and not fixed:
        warnings.append(
            f"model '{config.name}': parameter 'ENABLE_BATCH_PADDING' has no effect, batches of every size run as they "
            "are; only with SKIP_OV_DYNAMIC_BATCHSIZE is there something to pad"
        )
    return Plan(
        device=_device(values.get("TARGET_DEVICE", "") or "CPU"),
        properties=_properties(values),
        bf16=_bf16(values),
        extension=values.get("CPU_EXTENSION_PATH", ""),
        reshape=_switch(values, "RESHAPE_IO_LAYERS"),
        fixed_batch=fixed,
        pad=pad,
        warnings=tuple(warnings),
    )


def cpu_properties(plan: Plan, cpus: int, instances: int) -> dict[str, Property]:
    """The properties of the CPU device for a model that `instances` callers run at once.

    A stream is what one caller computes with. By itself OpenVINO makes one stream over all cores, computes in BF16
    where the CPU can (1.5e-2 off; results then depend on the machine), and ties its threads to cores, which other
    processes and the server's own thread want too.
    """
    found: dict[str, Property] = {
        "INFERENCE_PRECISION_HINT": "bf16" if plan.bf16 else "f32",
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_NUM_THREADS": max(1, cpus),
    }
    if "PERFORMANCE_HINT" not in plan.properties:
        found["NUM_STREAMS"] = max(1, instances)
        found["INFERENCE_NUM_THREADS"] = max(1, cpus // max(1, instances)) * max(1, instances)
    return found


def device_properties(plan: Plan, cpus: int, instances: int) -> dict[str, Property]:
    """What the model is compiled with on the plan's device."""
    if plan.device != "CPU":
        return dict(plan.properties)
    return {**cpu_properties(plan, cpus, instances), **plan.properties}


def default_streams(config: ModelConfig) -> int:
    """How many instances a group has where the config does not say: as many as the streams it asks for, else two.

    Values that make no number are refused at load.
    """
    streams = config.parameters["NUM_STREAMS"].string_value if "NUM_STREAMS" in config.parameters else ""
    if _is_count(streams) and int(streams) > 0:
        return int(streams)
    hint = config.parameters["PERFORMANCE_HINT"].string_value if "PERFORMANCE_HINT" in config.parameters else ""
    return 1 if hint.upper() == "LATENCY" else 2


def check_device(model: str, device: str, available: Collection[str]) -> None:
    """Raises InferError unless every device that `device` names is there; OpenVINO's own words are about libraries."""
    head, _, tail = device.partition(":")
    wanted = [each.strip(" -") for each in tail.split(",") if each.strip()] if head in _VIRTUAL else [head]
    for each in wanted:
        # GPU stands for GPU.0, and for GPU where there is one.
        if not any(there == each or there.partition(".")[0] == each for there in available):
            raise InferError(
                Code.UNAVAILABLE,
                f"unable to load model '{model}', its TARGET_DEVICE is '{device}' and OpenVINO finds no device "
                f"'{each}' here, only: {', '.join(sorted(available))}",
                "install the device's driver, or remove TARGET_DEVICE to run on the CPU",
            )


def _device(text: str) -> str:
    device = text.upper()
    head, _, _ = device.partition(":")
    if not _DEVICE.fullmatch(head):
        raise invalid(
            f"expected the parameter 'TARGET_DEVICE' to be a device of OpenVINO, got {text}",
            "CPU, GPU, GPU.1, NPU, AUTO, AUTO:GPU,CPU, MULTI:..., HETERO:...",
        )
    return device


def _properties(values: Mapping[str, str]) -> dict[str, Property]:
    found: dict[str, Property] = {}
    for key in ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS"):
        text = values.get(key, "")
        if text:
            if not _is_count(text):
                raise _bad(key, "a non-negative number", text)
            found[key] = int(text)
    streams = values.get("NUM_STREAMS", "").upper()
    if streams in ("AUTO", "NUMA"):
        found["NUM_STREAMS"] = streams
    elif _is_count(streams):
        found["NUM_STREAMS"] = int(streams)
    elif streams:
        raise _bad("NUM_STREAMS", "either AUTO/NUMA/<int_value>", values["NUM_STREAMS"])
    hint = values.get("PERFORMANCE_HINT", "").upper()
    if hint and hint not in _HINTS:
        raise _bad("PERFORMANCE_HINT", "/".join(_HINTS), values["PERFORMANCE_HINT"])
    if hint:
        found["PERFORMANCE_HINT"] = hint
    return found


def _is_count(text: str) -> bool:
    """Whether it is a number >= 0 that OpenVINO takes: it counts with 32 bits."""
    return text.isdecimal() and len(text) < 10


def _bf16(values: Mapping[str, str]) -> bool:
    text = values.get("HINT_BF16", "")
    if text and text.upper() != "YES":
        raise _bad("HINT_BF16", "YES", text)
    return bool(text)


def _switch(values: Mapping[str, str], key: str) -> bool:
    """Triton takes all but YES for "no" without a word."""
    text = values.get(key, "").upper()
    if text not in ("", "YES", "NO"):
        raise _bad(key, "YES or NO", values[key])
    return text == "YES"


def _bad(key: str, expected: str, text: str) -> InferError:
    return invalid(
        f"expected the parameter '{key}' to be {expected}, got {text.lower()}",
        f'parameters {{ key: "{key}" value {{ string_value: "..." }} }}',
    )
