"""Our messages are those of existing clients, and live beside them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import json_format, text_format

from conch.pb import grpc_service_pb2, health_pb2, model_config_pb2
from conch.pb.pool import POOL


def theirs() -> dict[str, Any]:
    from tritonclient.grpc import model_config_pb2 as their_config
    from tritonclient.grpc import service_pb2 as their_service

    return {"model_config": their_config.DESCRIPTOR, "grpc_service": their_service.DESCRIPTOR}


OURS = {"model_config": model_config_pb2.DESCRIPTOR, "grpc_service": grpc_service_pb2.DESCRIPTOR}


def fields(message: Any) -> dict[str, tuple[Any, ...]]:
    found = {}
    for field in message.fields:
        kind = field.message_type or field.enum_type
        choice = field.containing_oneof.name if field.containing_oneof else ""
        found[f"{message.full_name}.{field.name}"] = (
            field.number, field.type, field.is_repeated, kind.full_name if kind else "", choice, field.json_name,
        )  # fmt: skip
    for nested in message.nested_types:
        found |= fields(nested)
    return found


def enums(scope: Any) -> dict[str, dict[str, int]]:
    inner = scope.enum_types if hasattr(scope, "nested_types") else scope.enum_types_by_name.values()
    found = {enum.full_name: {value.name: value.number for value in enum.values} for enum in inner}
    nested = scope.nested_types if hasattr(scope, "nested_types") else scope.message_types_by_name.values()
    for message in nested:
        found |= enums(message)
    return found


@pytest.mark.parametrize("name", ["model_config", "grpc_service"])
def test_fields_and_enums_are_those_of_tritonclient(name: str) -> None:
    """Every field that tritonclient knows has the same number, type and choice here, and every enum the same values."""
    mine, other = OURS[name], theirs()[name]
    for message in other.message_types_by_name.values():
        known = fields(mine.message_types_by_name[message.name])
        assert fields(message).items() <= known.items()
    assert enums(other).items() <= enums(mine).items()


def test_calls_are_those_of_tritonclient() -> None:
    """Every call that tritonclient makes exists with the same messages and streams."""

    def calls(descriptor: Any) -> dict[str, tuple[Any, ...]]:
        service = descriptor.services_by_name["GRPCInferenceService"]
        return {
            call.name: (
                call.input_type.full_name, call.output_type.full_name, call.client_streaming, call.server_streaming,
            )
            for call in service.methods
        }  # fmt: skip

    assert calls(theirs()["grpc_service"]).items() <= calls(grpc_service_pb2.DESCRIPTOR).items()


def test_both_read_each_others_bytes() -> None:
    """A message written with one set of classes reads equal with the other."""
    from tritonclient.grpc import service_pb2

    ours = grpc_service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"ab"])
    ours.parameters["p"].uint64_param = 2**64 - 1
    ours.inputs.add(name="x", datatype="FP32", shape=[1, -1]).contents.fp32_contents.append(0.5)
    copy = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())
    assert copy.parameters["p"].uint64_param == 2**64 - 1
    assert grpc_service_pb2.ModelInferRequest.FromString(copy.SerializeToString()) == ours


@pytest.mark.parametrize("order", [("conch", "triton"), ("triton", "conch")])
def test_import_order_does_not_matter(order: tuple[str, str]) -> None:
    """Our messages and tritonclient's can be imported in either order."""
    lines = {
        "conch": "from conch.pb import grpc_service_pb2, health_pb2",
        "triton": "from tritonclient.grpc import service_pb2, model_config_pb2",
    }
    code = "; ".join(lines[each] for each in order)
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_messages_are_in_the_private_pool() -> None:
    """Ours are found in POOL, and text and JSON formats work with it."""
    assert POOL.FindMessageTypeByName("inference.ModelConfig") is model_config_pb2.ModelConfig.DESCRIPTOR
    assert POOL.FindMessageTypeByName("grpc.health.v1.HealthCheckResponse") is health_pb2.HealthCheckResponse.DESCRIPTOR
    config = text_format.Parse('name: "m"', model_config_pb2.ModelConfig(), descriptor_pool=POOL)
    assert json_format.MessageToDict(config, descriptor_pool=POOL) == {"name": "m"}
