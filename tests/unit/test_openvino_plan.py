"""What config parameters and settings make of an OpenVINO model."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from conch.backend.openvino.plan import (
    Plan,
    check_device,
    cpu_properties,
    default_streams,
    device_properties,
    plan_model,
)
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError


def make_config(parameters: dict[str, str] | None = None, text: str = "") -> ModelConfig:
    config = text_format.Parse('name: "m" max_batch_size: 8 ' + text, ModelConfig())
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    return config


def test_nothing_said() -> None:
    """Without parameters the plan is the default one, without warnings."""
    assert plan_model(make_config(), {}) == Plan()


def test_every_parameter_has_its_place() -> None:
    """Each parameter of Triton's OpenVINO backend sets its part of the plan; words may be in any case."""
    parameters = {
        "PERFORMANCE_HINT": "Throughput",
        "INFERENCE_NUM_THREADS": "3",
        "COMPILATION_NUM_THREADS": "2",
        "NUM_STREAMS": "auto",
        "HINT_BF16": "yes",
        "CPU_EXTENSION_PATH": "/ops.so",
        "SKIP_OV_DYNAMIC_BATCHSIZE": "YES",
        "ENABLE_BATCH_PADDING": "Yes",
        "RESHAPE_IO_LAYERS": "yes",
        "TARGET_DEVICE": "hetero:GPU,CPU",
        "conch_padding": "ours",
    }
    assert plan_model(make_config(parameters), {"default-max-batch-size": "2"}) == Plan(
        device="HETERO:GPU,CPU",
        properties={
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": 3,
            "COMPILATION_NUM_THREADS": 2,
            "NUM_STREAMS": "AUTO",
        },
        bf16=True,
        extension="/ops.so",
        reshape=True,
        fixed_batch=True,
        pad=True,
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("INFERENCE_NUM_THREADS", "-1", "a non-negative number, got -1"),
        ("COMPILATION_NUM_THREADS", "many", "a non-negative number, got many"),
        ("NUM_STREAMS", "Lots", "either AUTO/NUMA/<int_value>, got lots"),
        ("PERFORMANCE_HINT", "fast", "LATENCY/THROUGHPUT/CUMULATIVE_THROUGHPUT, got fast"),
        ("HINT_BF16", "NO", "YES, got no"),
        ("ENABLE_BATCH_PADDING", "true", "YES or NO, got true"),
        ("TARGET_DEVICE", "../x", "a device of OpenVINO, got ../x"),
    ],
)
def test_bad_values_are_refused(key: str, value: str, expected: str) -> None:
    """In Triton's words, where it has some."""
    with pytest.raises(InferError, match=f"expected the parameter '{key}' to be {expected}") as caught:
        plan_model(make_config({key: value}), {})
    assert caught.value.code is Code.INVALID_ARG


def test_what_has_no_effect_is_named() -> None:
    """Unknown parameters and settings warn, and padding where there is nothing to pad."""
    warnings = plan_model(make_config({"nireq": "4", "ENABLE_BATCH_PADDING": "YES"}), {"fast": "1"}).warnings
    assert [each.split("'")[3] for each in warnings] == ["nireq", "fast", "ENABLE_BATCH_PADDING"]
    assert all("has no effect" in each for each in warnings)


@pytest.mark.parametrize(
    ("cpus", "instances", "threads"), [(2, 2, 2), (1, 2, 2), (16, 2, 16), (16, 3, 15), (4, 1, 4), (2, 8, 8)]
)
def test_instances_share_the_cpus(cpus: int, instances: int, threads: int) -> None:
    """A stream for each instance, each with its part of the CPUs and at least one thread."""
    found = cpu_properties(Plan(), cpus, instances)
    assert (found["NUM_STREAMS"], found["INFERENCE_NUM_THREADS"]) == (instances, threads)


def test_results_do_not_depend_on_the_machine() -> None:
    """OpenVINO computes in BF16 where the CPU can, unless told otherwise; BF16 is for who asks for it."""
    assert cpu_properties(Plan(), 2, 1)["INFERENCE_PRECISION_HINT"] == "f32"
    assert cpu_properties(Plan(bf16=True), 2, 1)["INFERENCE_PRECISION_HINT"] == "bf16"


def test_the_operator_knows_better() -> None:
    """What the config says wins; with a hint OpenVINO chooses its streams; other devices get the config's alone."""
    said = {"NUM_STREAMS": 7, "INFERENCE_NUM_THREADS": 14}
    assert said.items() <= device_properties(Plan(properties=said), 2, 2).items()
    hinted = device_properties(Plan(properties={"PERFORMANCE_HINT": "LATENCY"}), 4, 2)
    assert "NUM_STREAMS" not in hinted
    assert hinted["INFERENCE_NUM_THREADS"] == 4
    assert device_properties(Plan(device="GPU", properties={"NUM_STREAMS": 2}), 2, 2) == {"NUM_STREAMS": 2}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 2),
        ({"NUM_STREAMS": "6"}, 6),
        ({"NUM_STREAMS": "AUTO"}, 2),
        ({"PERFORMANCE_HINT": "latency"}, 1),
        ({"PERFORMANCE_HINT": "THROUGHPUT"}, 2),
        ({"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "0"}, 1),
    ],
)
def test_instances_where_the_config_has_none(parameters: dict[str, str], expected: int) -> None:
    """As many as there are streams."""
    assert default_streams(make_config(parameters)) == expected


@pytest.mark.parametrize(
    ("device", "missing"),
    [("CPU", ""), ("AUTO", ""), ("GPU", ""), ("GPU.1", ""), ("GPU.2", "GPU.2"), ("NPU", "NPU"), ("MULTI:NPU", "NPU")],
)
def test_devices_that_are_not_there(device: str, missing: str) -> None:
    """One sentence names the device that is missing and those that are there."""
    available = ("CPU", "GPU.0", "GPU.1")
    if not missing:
        check_device("m", device, available)
        return
    with pytest.raises(InferError, match=f"OpenVINO finds no device '{missing}' here, only: CPU, GPU.0, GPU.1"):
        check_device("m", device, available)
