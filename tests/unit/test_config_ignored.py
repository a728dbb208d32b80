"""Nothing in a model config is silently ignored: every field has an effect, or is refused, or is named in a warning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from conch.config.ignored import ignored_fields
from conch.config.normalize import normalize
from conch.pb.model_config_pb2 import ModelConfig

#: Message fields that are looked into; the others stand for all that is in them.
OPEN = {
    "input", "output", "optimization", "dynamic_batching", "dynamic_batching.default_queue_policy", "instance_group",
}  # fmt: skip
#: What does something, with any backend.
EFFECTIVE = {
    "name", "platform", "backend", "version_policy", "ensemble_scheduling", "response_cache", "max_batch_size",
    "default_model_filename", "metric_tags", "model_metrics", "model_repository_agents",
    "parameters", "input.name", "input.data_type", "input.dims", "input.reshape", "input.optional",
    "input.allow_ragged_batch", "output.name", "output.data_type", "output.dims", "output.reshape",
    "output.label_filename",
    "dynamic_batching.preferred_batch_size",
    "dynamic_batching.max_queue_delay_microseconds",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    "dynamic_batching.default_queue_policy.allow_timeout_override",
    "dynamic_batching.default_queue_policy.max_queue_size", "dynamic_batching.default_queue_policy.timeout_action",
    "dynamic_batching.preserve_ordering", "dynamic_batching.priority_levels", "instance_group.name",
    "instance_group.kind",
    "instance_group.count", "instance_group.gpus", "instance_group.passive", "instance_group.rate_limiter",
    "instance_group.host_policy", "model_warmup", "sequence_batching",
}  # fmt: skip
#: Checked as Triton checks them, and as in Triton without effect on the models that there are.
CHECKED = {
    "input.format", "input.is_shape_tensor", "input.is_non_linear_format_io", "output.is_shape_tensor",
    "output.is_non_linear_format_io", "instance_group.profile", "optimization.input_pinned_memory",
    "optimization.output_pinned_memory",
}  # fmt: skip
#: The load is refused.
REFUSED = {"model_transaction_policy", "runtime"}
#: The ONNX Runtime backend acts on these, or refuses or warns of them itself.
ONNX = {
    "batch_input", "batch_output", "optimization.graph", "optimization.execution_accelerators", "model_operations",
}  # fmt: skip


def fields(message: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field under `message`, as its path and the path's descriptors."""
    for field in message.fields:
        name = f"{path}{field.name}"
        if name in OPEN:
            yield from ((below, (field, *rest)) for below, rest in fields(field.message_type, f"{name}."))
        else:
            yield name, (field,)


FIELDS = dict(fields(ModelConfig.DESCRIPTOR))


def config_with(path: str, backend: str) -> ModelConfig:
    """A config that sets this one field to something else than its default."""
    config = ModelConfig(max_batch_size=4)
    message: Any = config
    *parents, field = FIELDS[path]
    for parent in parents:
        message = getattr(message, parent.name)
        if parent.is_repeated:
            message = message.add()
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if field.message_type.fields_by_name["value"].message_type is not None:
            value.get_or_create(1 if path.endswith("policy") else "k")
        else:
            value["k"] = "v"
    elif field.message_type is not None:
        made = value.add() if field.is_repeated else value
        made.SetInParent()
        for each in made.DESCRIPTOR.fields:
            if each.type == FieldDescriptor.TYPE_BOOL and each.containing_oneof is None:
                setattr(made, each.name, True)
    else:
        one = {FieldDescriptor.TYPE_STRING: "v", FieldDescriptor.TYPE_BOOL: True}.get(field.type, 1)
        if field.is_repeated:
            value.append(one)
        else:
            setattr(message, field.name, one)
    config.backend = backend
    normalize(config)
    return config


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_accounted_for(path: str, backend: str) -> None:
    """A field that is set alone is named, alone, exactly when nothing acts on it or refuses it."""
    known = EFFECTIVE | CHECKED | REFUSED | (ONNX if backend == "onnxruntime" else set())
    # Behind the path of a field may stand what it would need.
    named = [name.split(" (")[0] for name in ignored_fields(config_with(path, backend))]
    assert named == ([] if path in known else [path])


def test_groups_are_fields() -> None:
    """The sets above name fields that there are."""
    assert FIELDS.keys() >= EFFECTIVE | CHECKED | REFUSED | ONNX


def test_batching_of_models_that_do_not_batch_is_named() -> None:
    """Without max_batch_size nothing is waited for; queue policies and levels hold all the same."""
    config = ModelConfig(backend="python")
    config.dynamic_batching.priority_levels = 2
    config.dynamic_batching.default_priority_level = 1
    config.dynamic_batching.default_queue_policy.max_queue_size = 3
    assert ignored_fields(config) == []
    config.dynamic_batching.max_queue_delay_microseconds = 5
    assert ignored_fields(config) == ["dynamic_batching.max_queue_delay_microseconds (max_batch_size is 0)"]


def test_metrics_without_buckets_to_choose_are_named() -> None:
    """One family has them; Triton warns of others, too."""
    config = ModelConfig(backend="python")
    config.model_metrics.metric_control.add().metric_identifier.family = "nv_inference_first_response_histogram_ms"
    assert ignored_fields(config) == []
    config.model_metrics.metric_control.add().metric_identifier.family = "nv_inference_count"
    assert [name.split(" (")[0] for name in ignored_fields(config)] == ["model_metrics.metric_control"]


def test_defaults_are_not_named() -> None:
    """What normalisation fills in is nobody's wish."""
    config = ModelConfig(backend="python", max_batch_size=4)
    config.dynamic_batching.SetInParent()
    config.response_cache.enable = False
    normalize(config)
    assert ignored_fields(config) == []


def test_batching_library_is_named() -> None:
    """A custom batching library is native code for Triton's process: the parameter that asks for one is warned of."""
    config = ModelConfig(name="m", backend="python")
    config.parameters["TRITON_BATCH_STRATEGY_PATH"].string_value = "/opt/strategy.so"
    assert ignored_fields(config) == ["parameters.TRITON_BATCH_STRATEGY_PATH"]


@pytest.mark.parametrize(
    ("backend", "vain"), [("onnxruntime", []), ("pytorch", []), ("openvino", ["conch_cut_batches"])]
)
def test_parameters_of_ours_have_an_effect_or_are_named(backend: str, vain: list[str]) -> None:
    """One that only some backends know, and one that nobody does; what has another name is the model's own."""
    config = ModelConfig(name="m", backend=backend)
    for name in ("conch_cut_batches", "conch_memory", "anything"):
        config.parameters[name].string_value = "no"
    assert ignored_fields(config) == [f"parameters.{name}" for name in vain]
    config.parameters["conch_mmeory"].string_value = "{}"
    assert "parameters.conch_mmeory" in ignored_fields(config)
