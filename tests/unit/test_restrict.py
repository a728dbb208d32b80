"""Restricted APIs: the pure decision, and that nothing of the protocol is left out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.config.flags import FlagError, parse
from conch.config.server import Restriction
from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.restrict import (
    GRPC_PREFIX,
    RestrictedError,
    Restrictions,
    action_category,
    method_category,
    route_category,
)
from conch.protocol.v2.routes import Action, find
from conch.types.error import Code

ANSWERS = {Action.WRONG_METHOD, Action.NOT_FOUND}
CATEGORIES = {
    "health", "metadata", "inference", "shared-memory", "model-config", "model-repository", "statistics", "trace",
    "logging",
}  # fmt: skip
PATHS = {
    "GET /v2/health/live": "health", "GET /v2/health/ready": "health", "GET /v2/models/m/ready": "health",
    "GET /v2": "metadata", "GET /v2/models/m": "metadata", "GET /v2/models/m/versions/1": "metadata",
    "GET /v2/models/m/config": "model-config", "POST /v2/models/m/infer": "inference",
    "POST /v2/models/m/generate": "inference", "POST /v2/models/m/generate_stream": "inference",
    "GET /v2/models/stats": "statistics", "GET /v2/models/m/stats": "statistics",
    "POST /v2/repository/index": "model-repository", "POST /v2/repository/models/m/load": "model-repository",
    "POST /v2/repository/models/m/unload": "model-repository",
    "POST /v2/repository/r/models/m/unload": "model-repository", "POST /v2/repository/r/index": "model-repository",
    "GET /v2/systemsharedmemory/status": "shared-memory", "GET /v2/cudasharedmemory/region/r/status": "shared-memory",
    "POST /v2/systemsharedmemory/region/r/register": "shared-memory",
    "POST /v2/cudasharedmemory/unregister": "shared-memory",
    "GET /v2/trace/setting": "trace", "POST /v2/trace/setting": "trace", "POST /v2/models/m/trace/setting": "trace",
    "GET /v2/logging": "logging", "POST /v2/logging": "logging",
    "GET /v2/nothing": "", "DELETE /v2": "metadata", "POST /v2/models/m/config": "model-config",
}  # fmt: skip


@pytest.mark.parametrize(("request_line", "category"), PATHS.items())
def test_a_path_has_its_category(request_line: str, category: str) -> None:
    """Each endpoint is in the category that Triton puts it in."""
    method, path = request_line.split(" ")
    assert route_category(find(method, path)) == category


@pytest.mark.parametrize("action", [each for each in Action if each not in ANSWERS])
def test_every_action_can_be_restricted(action: Action) -> None:
    """No endpoint is left out of the categories."""
    assert action_category(action) in CATEGORIES


def test_every_call_can_be_restricted() -> None:
    """No method of the service is left out of the categories; methods that do not exist have none."""
    methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {method_category(f"/inference.GRPCInferenceService/{each.name}") for each in methods} == CATEGORIES
    assert method_category("/grpc.health.v1.Health/Check") == "health"
    assert method_category("/grpc.health.v1.Health/Watch") == "health"
    assert method_category("/inference.GRPCInferenceService/Nope") == ""


KEYED = Restrictions([Restriction(("health", "trace"), "Admin-Key", "s3cret")])


def test_the_key_opens() -> None:
    """The right value in the header of that name, in any case, lets a request pass."""
    assert KEYED.check("health", {"admin-key": "s3cret"}.get) is None
    assert KEYED.check("metadata", {}.get) is None
    assert KEYED.check("", {}.get) is None


@pytest.mark.parametrize("headers", [{}, {"admin-key": ""}, {"admin-key": "S3cret"}, {"other": "s3cret"}])
def test_without_the_key_a_restricted_api_is_refused(headers: dict[str, str]) -> None:
    """Missing or wrong, the answer is the same, and does not tell the value."""
    refused = KEYED.check("trace", headers.get)
    assert isinstance(refused, RestrictedError)
    assert refused.message == "This API is restricted, expecting header 'Admin-Key'"
    assert refused.code is Code.UNAVAILABLE


def test_grpc_keys_have_a_prefix() -> None:
    """In metadata the key is `triton-grpc-protocol-<key>`."""
    restrictions = Restrictions([Restriction(("health",), "k", "v")], "protocol", GRPC_PREFIX)
    refused = restrictions.check("health", {"k": "v"}.get)
    assert refused is not None
    assert refused.message == "This protocol is restricted, expecting header 'triton-grpc-protocol-k'"
    assert restrictions.check("health", {"triton-grpc-protocol-k": "v"}.get) is None


@given(st.text(), st.text())
def test_only_the_very_value_opens(value: str, given_value: str) -> None:
    """For any two texts: open if and only if they are equal."""
    restrictions = Restrictions([Restriction(("logging",), "k", value)])
    try:
        value.encode(), given_value.encode()
    except UnicodeEncodeError:
        return
    assert (restrictions.check("logging", {"k": given_value}.get) is None) == (value == given_value)


def test_the_flags_say_what_is_restricted() -> None:
    """Both flags may be given several times; the options do not show the value."""
    argv = ["--model-repository=/r", "--http-restricted-api=health,trace:k=v=w", "--http-restricted-api=logging:l=x"]
    options = parse([*argv, "--grpc-restricted-protocol=inference:m=y"], "tritonserver", {})
    assert options.http.restricted == (
        Restriction(("health", "trace"), "k", "v=w"), Restriction(("logging",), "l", "x")
    )  # fmt: skip
    assert options.grpc.restricted == (Restriction(("inference",), "m", "y"),)
    assert "v=w" not in repr(options)


def test_a_category_is_in_one_group_only() -> None:
    """Two keys for one category are refused at the start."""
    argv = ["--model-repository=/r", "--grpc-restricted-protocol=health:k=v", "--grpc-restricted-protocol=health:l=w"]
    with pytest.raises(FlagError, match="restricted protocol 'health' can not be specified in multiple config groups"):
        parse(argv, "tritonserver", {})
