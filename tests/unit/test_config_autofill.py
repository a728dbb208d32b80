"""Which backend a model gets when its config does not say, and what else is filled in before it loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from conch.config.autofill import fill_backend, settle
from conch.config.instances import InstanceGroup, fill_instance_groups, instance_groups
from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BYTES, FP32
from conch.types.error import InferError
from conch.types.model import TensorSpec
from support.configs import model


def settled(text: str, *content: str, name: str = "m") -> tuple[str, str, str]:
    """Backend, platform and file; names in `content` that end in / are folders."""
    config = parse_text(text, "a")
    settle(config, name, {each.rstrip("/"): each.endswith("/") for each in content})
    assert config.name == name
    return config.backend, config.platform, config.default_model_filename


ONNX = ("onnxruntime", "onnxruntime_onnx", "model.onnx")
TORCH = ("pytorch", "pytorch_libtorch", "model.pt")


@pytest.mark.parametrize(
    ("text", "content", "result"),
    [
        ("", ("model.onnx",), ONNX),
        ("", ("model.onnx/",), ONNX),
        ("", ("model.py", "model.onnx"), ONNX),
        ("", ("model.py", "__pycache__/"), ("python", "", "model.py")),
        ("", ("model.plan",), ("tensorrt", "tensorrt_plan", "model.plan")),
        ("", ("model.xml", "model.bin"), ("openvino", "", "model.xml")),
        ("", ("model.pt",), TORCH),
        ("", ("model.pt2",), ("pytorch", "torch_aoti", "model.pt2")),
        ("", ("model.savedmodel/",), ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ("", ("model.graphdef",), ("tensorflow", "tensorflow_graphdef", "model.graphdef")),
        ("", ("model.graphdef/", "model.py"), ("python", "", "model.py")),
        ('platform: "onnxruntime_onnx"', (), ONNX),
        ('platform: "libtorch"', (), TORCH),
        ('platform: "pytorch_libtorch"', (), TORCH),
        ('platform: "torch_aoti"', (), ("pytorch", "torch_aoti", "model.pt2")),
        ('backend: "onnxruntime"', (), ONNX),
        ('backend: "onnxruntime" default_model_filename: "a.onnx"', (), ("onnxruntime", "onnxruntime_onnx", "a.onnx")),
        ('backend: "pytorch"', (), TORCH),
        ('backend: "pytorch" default_model_filename: "model.pt2"', (), ("pytorch", "torch_aoti", "model.pt2")),
        ('backend: "python"', ("model.onnx",), ("python", "", "model.py")),
        ('backend: "mine"', ("model.onnx",), ("mine", "", "")),
        ('default_model_filename: "model.py"', ("model.onnx",), ("python", "", "model.py")),
        ('default_model_filename: "other"', ("model.onnx",), ("", "", "other")),
        ('platform: "ensemble"', ("model.onnx",), ("", "ensemble", "")),
        ('platform: "other"', ("model.onnx",), ("", "other", "")),
    ],
)
def test_backend(text: str, content: tuple[str, ...], result: tuple[str, str, str]) -> None:
    """The first step that knows the platform, the file name or the folder's content settles the backend."""
    assert settled(text, *content) == result


def test_backend_from_the_models_name() -> None:
    """A model with nothing known is named `x.<backend>`."""
    assert settled("", "data", name="m.identity") == ("identity", "", "model.identity")


@pytest.mark.parametrize("name", ["m", "m."])
def test_no_backend(name: str) -> None:
    """Where nothing tells the backend, the error is Triton's and the hint says what was looked at."""
    with pytest.raises(InferError) as caught:
        settled("", "weights.bin", name=name)
    assert caught.value.message == (
        f"Invalid model name: Could not determine backend for model '{name}' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )
    assert "weights.bin" in caught.value.hint


def test_name_must_be_the_folders() -> None:
    """A config's name is that of the model's folder."""
    with pytest.raises(InferError) as caught:
        settled('name: "other" backend: "python"')
    text = "unexpected directory name 'm' for model 'other', directory name must equal model name"
    assert caught.value.message == text


def test_first_version_in_string_order_is_looked_into(tmp_path: Path) -> None:
    """Of versions 2 and 10 the folder 10 tells the backend."""
    for version, file in (("2", "model.py"), ("10", "model.onnx")):
        (tmp_path / version).mkdir()
        (tmp_path / version / file).touch()
    config = ModelConfig()
    fill_backend(config, "m", [tmp_path / "2", tmp_path / "10"])
    assert config.backend == "onnxruntime"


def test_missing_version_folder(tmp_path: Path) -> None:
    """A folder that has gone holds nothing; it is no crash."""
    config = ModelConfig(backend="python")
    fill_backend(config, "m", [tmp_path / "1"])
    assert config.default_model_filename == "model.py"
    with pytest.raises(InferError):
        fill_backend(ModelConfig(), "m", [tmp_path / "1"])


def test_normalize() -> None:
    """What a config leaves unsaid becomes Triton's default; what it says stays."""
    config = parse_text("max_batch_size: 8 dynamic_batching {}", "a")
    normalize(config)
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.optimization.input_pinned_memory.enable
    config = parse_text(
        "max_batch_size: 8 sequence_batching { oldest {} } version_policy { all {} } "
        "optimization { output_pinned_memory { enable: false } }", "a",
    )  # fmt: skip
    normalize(config)
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert list(config.sequence_batching.oldest.preferred_batch_size) == [8]
    assert config.version_policy.HasField("all")
    assert not config.optimization.output_pinned_memory.enable
    before = config.SerializeToString(deterministic=True)
    normalize(config)
    assert config.SerializeToString(deterministic=True) == before


def test_normalize_leaves_ensembles_and_plain_models_alone() -> None:
    """Ensembles get no optimization block, and models that do not batch no preferred size."""
    config = parse_text("ensemble_scheduling {}", "a")
    normalize(config)
    assert not config.HasField("optimization")
    config = parse_text("dynamic_batching {}", "a")
    normalize(config)
    assert not config.dynamic_batching.preferred_batch_size


def test_spec() -> None:
    """The spec holds tensors in the config's order, with their reshapes."""
    config = model(
        "max_batch_size: 4 model_transaction_policy { decoupled: true }",
        tensors="""
        input [ { name: "a" data_type: TYPE_STRING dims: [ 1 ] reshape { shape: [] } },
                { name: "b" data_type: TYPE_FP32 dims: [ -1, 2 ] optional: true } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]""",
    )
    spec = model_spec(config, 7)
    assert (spec.name, spec.version, spec.max_batch_size, spec.decoupled) == ("m", 7, 4, True)
    assert spec.inputs == (
        TensorSpec("a", BYTES, (1,), reshape=()),
        TensorSpec("b", FP32, (-1, 2), optional=True),
    )
    assert spec.outputs == (TensorSpec("y", FP32, (3,)),)


def test_spec_needs_data_types() -> None:
    """A tensor without a type is an error, not a crash."""
    with pytest.raises(InferError, match="must specify 'data_type'"):
        model_spec(model(tensors='input { name: "x" dims: [ 1 ] }'), 1)


@pytest.mark.parametrize(
    ("text", "gpus", "default", "groups"),
    [
        ("", (), 1, [InstanceGroup("m", "CPU", 1)]),
        ("", (), 2, [InstanceGroup("m", "CPU", 2)]),
        ("", (0, 1), 2, [InstanceGroup("m", "GPU", 1, (0, 1))]),
        ("instance_group { count: 3 }", (), 2, [InstanceGroup("m_0", "CPU", 3)]),
        ("instance_group { count: -3 kind: KIND_CPU }", (0,), 1, [InstanceGroup("m_0", "CPU", 1)]),
        ('instance_group [ { kind: KIND_MODEL }, { name: "z" } ]', (), 2,
         [InstanceGroup("m_0", "MODEL", 1), InstanceGroup("z", "CPU", 2)]),
        ("instance_group { kind: KIND_GPU gpus: [ 1 ] count: 2 }", (0, 1), 1, [InstanceGroup("m_0", "GPU", 2, (1,))]),
        ("ensemble_scheduling {}", (), 1, []),
    ],
)  # fmt: skip
def test_instance_groups(text: str, gpus: tuple[int, ...], default: int, groups: list[InstanceGroup]) -> None:
    """Groups get Triton's names, kinds and counts; the config stays as it was."""
    config = model(text)
    before = config.SerializeToString(deterministic=True)
    assert instance_groups(config, gpus, default) == groups
    assert config.SerializeToString(deterministic=True) == before


def test_instance_names() -> None:
    """The implicit group's instances are m_0, m_1; those of group 0 are m_0_0, m_0_1; GPUs share names."""
    assert [place.name for place in instance_groups(model(), (), 2)[0].places()] == ["m_0", "m_1"]
    group = instance_groups(model("instance_group { count: 2 }"), (0, 3))[0]
    assert [(place.name, place.device) for place in group.places()] == [
        ("m_0_0", 0), ("m_0_0", 3), ("m_0_1", 0), ("m_0_1", 3)
    ]  # fmt: skip


def test_filled_groups_are_shown() -> None:
    """fill_instance_groups writes what the config calls then show."""
    config = model("instance_group { kind: KIND_CPU }")
    fill_instance_groups(config, default_count=2)
    assert (config.instance_group[0].name, config.instance_group[0].count) == ("m_0", 2)


@pytest.mark.parametrize(
    ("text", "gpus", "message"),
    [
        ("kind: KIND_GPU", (), "instance group m_0 of model m has kind KIND_GPU but no GPUs are available"),
        ("kind: KIND_GPU gpus: [ 7 ]", (0, 1),
         ("instance group m_0 of model m specifies invalid or unsupported gpu id 7. GPUs with at least the minimum "
         "required CUDA compute compatibility of 6.000000 are: 0, 1")),
        ("kind: KIND_CPU gpus: [ 0 ]", (0,),
         "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs"),
        ("gpus: [ 0 ]", (), "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs"),
        ("kind: KIND_MODEL gpus: [ 0 ]", (0,),
         "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs"),
        ('profile: [ "0" ]', (),
         ("instance group m_0 of model m and platform specifies profile field which is only supported for TensorRT "
         "models")),
        ("count: 2000000000", (), "instance group m_0 of model m has count 2000000000, more than 4096"),
    ],
)  # fmt: skip
def test_instance_group_rules(text: str, gpus: tuple[int, ...], message: str) -> None:
    """Groups that the machine cannot have are refused in Triton's words."""
    with pytest.raises(InferError) as caught:
        instance_groups(model(f"instance_group {{ {text} }}"), gpus)
    assert caught.value.message == message
    assert caught.value.hint
