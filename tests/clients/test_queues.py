"""Queues as clients see them: when to come again, shares of tenants, levels, over real sockets."""

from __future__ import annotations

import http.client
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from conch.pb import grpc_service_pb2 as pb
from parity.models import write_python
from parity.schedules import CONFIG, MODEL, Hold, Release, Schedule, Send
from support.server import Server
from support.until import until

MODELS = {
    "full": "max_batch_size: 1 dynamic_batching { default_queue_policy { max_queue_size: 1 } }",
    "hasty": """max_batch_size: 1 dynamic_batching { priority_levels: 2 default_priority_level: 2
        priority_queue_policy { key: 2 value { default_timeout_microseconds: 1000 } } }""",
    "fair": """max_batch_size: 1 dynamic_batching { }
        parameters { key: "conch_fair_weights" value { string_value: "gold=3,*=1" } }
        parameters { key: "conch_fair_by" value { string_value: "x-tenant" } }""",
    "fair_alone": 'parameters { key: "conch_fair_weights" value { string_value: "gold=3,*=1" } }',
    "levels": "max_batch_size: 1 dynamic_batching { priority_levels: 2 default_priority_level: 2 }",
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("queues")
    for name, scheduling in MODELS.items():
        write_python(root / name, [1], MODEL, CONFIG + scheduling)
    return root


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    flags = ("--http-header-forward-pattern=(?i)x-tenant", "--grpc-header-forward-pattern=x-tenant")
    with Server(repository, *flags) as running:
        yield running


def ask_http(server: Server, model: str) -> tuple[int, Any, http.client.HTTPMessage]:
    body = {"inputs": [{"name": "X", "datatype": "INT32", "shape": [1, 1], "data": [1]}]}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=100)
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
    response = connection.getresponse()
    said = json.loads(response.read())
    connection.close()
    return response.status, said, response.headers


def message(model: str, value: int = 1, shape: tuple[int, ...] = (1, 1), priority: int = 1) -> bytes:
    request = pb.ModelInferRequest(model_name=model)
    request.parameters["priority"].int64_param = priority
    request.inputs.add(name="X", datatype="INT32", shape=shape)
    request.raw_input_contents.append(struct.pack("<i", value))
    return bytes(request.SerializeToString())


class Busy:
    """While in this block the model's only instance is busy and, by default, its queue is full."""

    def __init__(self, server: Server, place: Path) -> None:
        self.server, self.place = server, place
        self.channel = grpc.insecure_channel(server.grpc)
        self.call = self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self.started: list[Any] = []

    def __enter__(self) -> Busy:
        self.started.append(self.call.future(message(self.place.name, -1), timeout=100))
        held = self.place / "held-1"
        until(held.exists)
        held.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        (self.place / "release-1").touch()
        # The channel closes only when all are answered: it would cancel those that are not.
        for each in self.started:
            each.result()
        self.channel.close()

    def fill(self) -> None:
        self.started.append(self.call.future(message(self.place.name), timeout=100))
        name = f'nv_inference_pending_request_count{{model="{self.place.name}",version="1"}} 1\n'
        until(lambda: name in page(self.server))


def page(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_a_refused_client_is_told_when_to_come_again(server: Server, repository: Path) -> None:
    """HTTP: Retry-After in whole seconds. gRPC: the same, and in milliseconds for gRPC's own retries."""
    with Busy(server, repository / "full") as busy:
        busy.fill()
        status, said, headers = ask_http(server, "full")
        assert (status, said["error"]) == (503, "[request id: <id_unknown>] Exceeds maximum queue size")
        assert int(headers["Retry-After"]) >= 1
        with pytest.raises(grpc.RpcError) as refusal:
            busy.call(message("full"), timeout=100)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        told = dict(refusal.value.trailing_metadata())
        assert int(told["retry-after"]) >= 1
        assert int(told["grpc-retry-pushback-ms"]) >= 1
    status, _, headers = ask_http(server, "full")
    assert (status, headers["Retry-After"]) == (200, None)


def test_who_waits_longer_than_the_queue_allows_is_refused(server: Server, repository: Path) -> None:
    """default_timeout_microseconds, over the wire: 503, and why. What runs takes as long as it takes."""
    with Busy(server, repository / "hasty"):
        status, said, _ = ask_http(server, "hasty")
    assert (status, said["error"]) == (503, "Request timeout expired")


def test_generate_tells_too(server: Server, repository: Path) -> None:
    """The same header for the same refusal."""
    with Busy(server, repository / "full") as busy:
        busy.fill()
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=100)
        connection.request("POST", "/v2/models/full/generate", json.dumps({"X": [[1]]}))
        response = connection.getresponse()
        assert response.status == 503, response.read()
        assert int(response.headers["Retry-After"]) >= 1
        connection.close()


def order(server: Server, repository: Path, schedule: Schedule) -> list[str]:
    """The names of the requests in the order in which they ran."""
    answers = schedule.play(server, repository)["answers"]
    return sorted(answers, key=lambda name: answers[name]["ORDER"][0])


def test_tenants_share_by_header(server: Server, repository: Path) -> None:
    """Of four requests three are gold's, though bronze came first and however the header is spelled."""
    steps = [Send(f"bronze{n}", headers=(("X-Tenant", "bronze"),)) for n in range(4)]
    steps += [Send(f"gold{n}", headers=(("x-tenant" if n % 2 else "X-TENANT", "gold"),)) for n in range(4)]
    ran = order(server, repository, Schedule("fair", "fair", (Hold(), *steps, Release())))
    assert sorted(name[:-1] for name in ran[:4]) == ["bronze", "gold", "gold", "gold"]
    assert [name for name in ran if name.startswith("gold")] == [f"gold{n}" for n in range(4)]


def test_tenants_share_by_metadata(server: Server, repository: Path) -> None:
    """Over gRPC the same."""
    tenants = ["bronze"] * 4 + ["gold"] * 4
    with Busy(server, repository / "fair") as busy:
        for count, tenant in enumerate(tenants, 1):
            busy.started.append(busy.call.future(message("fair"), timeout=100, metadata=(("x-tenant", tenant),)))
            waiting = f'nv_inference_pending_request_count{{model="fair",version="1"}} {count}\n'
            until(lambda: waiting in page(server))  # noqa: B023
    order = []
    for call in busy.started[1:]:
        reply = pb.ModelInferResponse.FromString(call.result())
        index = [output.name for output in reply.outputs].index("ORDER")
        order.append(struct.unpack("<i", reply.raw_output_contents[index])[0])
    ran = [tenant for _, tenant in sorted(zip(order, tenants, strict=True))]
    assert sorted(ran[:4]) == ["bronze", "gold", "gold", "gold"]


def test_a_model_without_batching_may_be_fair(server: Server, repository: Path) -> None:
    """The default scheduler, where the parameter `tenant` is not given: all are one tenant, in their order."""
    steps = (Hold(), Send("a"), Send("b"), Send("c"), Release())
    assert order(server, repository, Schedule("alone", "fair_alone", steps, batches=False)) == ["a", "b", "c"]


def test_pending_requests_of_all_levels_are_counted(server: Server, repository: Path) -> None:
    """The gauge is the sum over the levels, and 0 when all have run."""
    steps = (Hold(), Send("low"), Send("high", priority=1), Send("low2", priority=2), Release())
    assert order(server, repository, Schedule("levels", "levels", steps)) == ["high", "low", "low2"]
    assert 'nv_inference_pending_request_count{model="levels",version="1"} 0\n' in page(server)


def test_weights_that_cannot_be_meant_stop_the_load(tmp_path: Path) -> None:
    """The log says what was expected."""
    wrong = 'parameters { key: "conch_fair_weights" value { string_value: "gold" } }'
    write_python(tmp_path / "wrong", [1], MODEL, CONFIG + wrong)
    server = Server(tmp_path)
    try:
        assert server.wait() == 1
        assert (
            "parameter 'conch_fair_weights' of model 'wrong' is 'gold': 'gold' is no '<tenant>=<weight>'" in server.log
        )
    finally:
        server.close()
