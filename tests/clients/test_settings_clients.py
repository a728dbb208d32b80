"""Log settings, trace settings, traces and restricted APIs of a server process, with unmodified clients."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from support.collector import Collector
from support.server import TRITONSERVER, Server

pytestmark = pytest.mark.slow

CONFIG = """
backend: "identity"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: 2 }
output { name: "Y" data_type: TYPE_FP32 dims: 2 }
"""
CLIENTS = (httpclient, grpcclient)
EVERY = ["QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]
HTTP = ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"]
GRPC = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "GRPC_SEND_START", "GRPC_SEND_END"]
CORE = ["REQUEST_START", "INFER_RESPONSE_COMPLETE", "REQUEST_END"]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "config.pbtxt").write_text(CONFIG)
    return root


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Traces nothing at first, but has a file; statistics are restricted."""
    flags = (
        f"--trace-config=triton,file={tmp_path_factory.mktemp('traces') / 't.json'}", "--trace-rate=1",
        "--http-restricted-api=statistics:admin-key=s3cret", "--grpc-restricted-protocol=statistics:admin-key=s3cret",
    )  # fmt: skip
    with Server(repository, *flags, command=TRITONSERVER) as running:
        yield running


def client(kind: Any, server: Server) -> Any:
    return kind.InferenceServerClient(server.http if kind is httpclient else server.grpc)


def infer(kind: Any, caller: Any, **more: Any) -> None:
    tensor = kind.InferInput("X", [1, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[1, 2.5]], np.float32))
    assert caller.infer("m", [tensor], **more).as_numpy("Y").tolist() == [[1, 2.5]]


def log_settings(kind: Any, caller: Any, **changes: Any) -> dict[str, Any]:
    answer = caller.update_log_settings(changes) if changes else caller.get_log_settings()
    if kind is httpclient:
        return dict(answer)
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in answer.settings.items()}


@pytest.mark.parametrize("kind", CLIENTS)
def test_log_settings_change_the_running_log(kind: Any, server: Server) -> None:
    """Verbose lines and another format from now on, and back."""
    before = {"log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0,
              "log_format": "default"}  # fmt: skip
    with client(kind, server) as caller:
        assert log_settings(kind, caller) == before
        changed = log_settings(kind, caller, log_verbose_level=1, log_format="ISO8601", log_info=False)
        assert changed == {**before, "log_verbose_level": 1, "log_format": "ISO8601", "log_info": False}
        assert log_settings(kind, caller, log_verbose_level=0, log_format="default", log_info=True) == before
        with pytest.raises(InferenceServerException, match="log file location can not be updated through network"):
            log_settings(kind, caller, log_file="x")


@pytest.mark.parametrize("kind", CLIENTS)
def test_trace_settings_fall_back_and_are_cleared(kind: Any, server: Server) -> None:
    """The model's own, else everybody's; None clears."""
    json = {} if kind is httpclient else {"as_json": True}

    def value(answer: Any, key: str) -> str:
        return str(answer[key] if kind is httpclient else answer["settings"][key]["value"][0])

    with client(kind, server) as caller:
        caller.update_trace_settings(settings={"trace_rate": "7"})
        caller.update_trace_settings("m", settings={"trace_count": "3"})
        own = caller.get_trace_settings("m", **json)
        assert (value(own, "trace_rate"), value(own, "trace_count")) == ("7", "3")
        assert value(caller.get_trace_settings(**json), "trace_count") == "-1"
        caller.update_trace_settings("m", settings={"trace_count": None})
        caller.update_trace_settings(settings={"trace_rate": None})
        assert value(caller.get_trace_settings("m", **json), "trace_rate") == "1"
        with pytest.raises(InferenceServerException, match="Request for unknown model : nope"):
            caller.get_trace_settings("nope")


def names(entries: list[dict[str, Any]], number: int) -> list[str]:
    times = [each["timestamps"][0] for each in entries if each["id"] == number and "timestamps" in each]
    return [each["name"] for each in sorted(times, key=lambda each: each["ns"])]


def test_traces_are_files_as_triton_writes_them(repository: Path, tmp_path: Path) -> None:
    """Times and tensors of requests of both protocols, complete when the server has left."""
    path = tmp_path / "t.json"
    flags = [
        f"--trace-config={each}" for each in (f"triton,file={path}", "level=TIMESTAMPS", "level=TENSORS", "rate=1")
    ]
    with Server(repository, *flags, command=TRITONSERVER) as server:
        for kind in CLIENTS:
            with client(kind, server) as caller:
                infer(kind, caller, request_id=kind.__name__)
    entries = json.loads(path.read_text())
    headers = [each for each in entries if "model_name" in each]
    assert headers == [
        {"id": number, "model_name": "m", "model_version": 1, "request_id": kind.__name__}
        for number, kind in enumerate(CLIENTS, 1)
    ]
    for number, own in ((1, HTTP), (2, GRPC)):
        assert sorted(names(entries, number)) == sorted([*EVERY, *CORE, *own])
        tensors = {each["activity"]: each["tensor"] for each in entries if each["id"] == number and "activity" in each}
        tensor = {"data": "1,2.5", "shape": "1,2", "dtype": "FP32"}
        assert tensors == {
            "TENSOR_QUEUE_INPUT": {"name": "X", **tensor}, "TENSOR_BACKEND_OUTPUT": {"name": "Y", **tensor}
        }  # fmt: skip


def test_a_client_turns_tracing_on_and_its_count_ends_it(repository: Path, tmp_path: Path) -> None:
    """What perf_analyzer does with --trace-level, --trace-rate, --trace-count and --log-frequency."""
    path = tmp_path / "t.json"
    with (
        Server(repository, f"--trace-file={path}", command=TRITONSERVER) as server,
        client(grpcclient, server) as caller,
    ):
        settings = {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "3", "log_frequency": "2"}
        caller.update_trace_settings(settings=settings)
        for _ in range(10):
            infer(grpcclient, caller)
        left = caller.get_trace_settings(as_json=True)["settings"]["trace_count"]["value"]
    assert left == ["0"]
    files = [json.loads((tmp_path / f"t.json.{index}").read_text()) for index in (0, 1)]
    assert [[each["id"] for each in entries if "model_name" in each] for entries in files] == [[1, 2], [3]]
    assert "'--trace-file' has been deprecated" in server.log


def test_spans_go_to_an_opentelemetry_collector(repository: Path) -> None:
    """Requests with a trace context are traced whatever the rate, as children of the client's span."""
    with Collector() as collector:
        flags = [f"--trace-config={each}" for each in (
            "mode=opentelemetry", f"opentelemetry,url={collector.url}", "level=TIMESTAMPS", "rate=0",
            "opentelemetry,bsp_schedule_delay=50", "opentelemetry,resource=service.name=mine",
        )]  # fmt: skip
        with Server(repository, *flags, command=TRITONSERVER) as server:
            for kind in CLIENTS:
                with client(kind, server) as caller:
                    infer(kind, caller)
                    infer(kind, caller, request_id=kind.__name__, headers={"traceparent": PARENT})
            spans = collector.wait(6)
    assert len(collector.spans) == 6
    assert collector.resources[0]["service.name"] == "mine"
    roots = [each for each in spans if each.name == "InferRequest"]
    assert {each.trace_id.hex() for each in spans} == {PARENT.split("-")[1]}
    assert {each.parent_span_id.hex() for each in roots} == {PARENT.split("-")[2]}
    for root, own in zip(roots, (HTTP, GRPC), strict=True):
        assert sorted([event.name for event in root.events]) == sorted([*EVERY, *CORE, *own])
        (model,) = [each for each in spans if each.parent_span_id == root.span_id]
        (compute,) = [each for each in spans if each.parent_span_id == model.span_id]
        assert (model.name, compute.name) == ("m", "compute")
        attributes = {each.key: each.value for each in model.attributes}
        assert attributes["triton.model_name"].string_value == "m"
        assert root.start_time_unix_nano <= model.start_time_unix_nano <= compute.start_time_unix_nano
        assert compute.start_time_unix_nano < compute.end_time_unix_nano <= model.end_time_unix_nano


def test_a_collector_that_is_away_harms_no_request(repository: Path) -> None:
    """Spans are lost, answers are not, and the server still leaves in time."""
    url = "opentelemetry,url=http://127.0.0.1:9/v1/traces"
    flags = [f"--trace-config={each}" for each in ("mode=opentelemetry", url, "level=TIMESTAMPS", "rate=1")]
    with Server(repository, *flags, command=TRITONSERVER) as server, client(httpclient, server) as caller:
        for _ in range(3):
            infer(httpclient, caller)


def statistics(server: Server, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request("GET", "/v2/models/stats", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_restricted_apis_need_the_key(server: Server) -> None:
    """403 and Triton's text without it; the log never tells the key."""
    refusal = (403, b'{"error":"This API is restricted, expecting header \'admin-key\'"}')
    assert statistics(server) == statistics(server, **{"admin-key": "wrong"}) == refusal
    assert statistics(server, **{"Admin-Key": "s3cret"})[0] == 200
    with client(httpclient, server) as caller:
        infer(httpclient, caller)
        with pytest.raises(InferenceServerException) as caught:
            caller.get_inference_statistics()
        assert caught.value.status() == "403"
    assert "s3cret" not in server.log


def test_restricted_protocols_need_the_key(server: Server) -> None:
    """UNAVAILABLE and Triton's text without it."""
    with client(grpcclient, server) as caller:
        infer(grpcclient, caller)
        for headers in ({}, {"triton-grpc-protocol-admin-key": "wrong"}, {"admin-key": "s3cret"}):
            with pytest.raises(InferenceServerException) as caught:
                caller.get_inference_statistics(headers=headers)
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
            assert caught.value.message() == (
                "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'"
            )
        assert caller.get_inference_statistics(headers={"triton-grpc-protocol-admin-key": "s3cret"}).model_stats


def test_a_large_body_without_the_key_is_not_read(repository: Path) -> None:
    """Who may not ask is answered before the body is in, and hung up on."""
    with Server(repository, "--http-restricted-api=inference:k=v", command=TRITONSERVER) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.putrequest("POST", "/v2/models/m/infer")
        connection.putheader("Content-Length", str(1 << 25))
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (403, "close")
        connection.close()


def test_the_extensions_are_claimed(server: Server) -> None:
    """The server's metadata names what it serves."""
    with client(httpclient, server) as caller:
        assert {"trace", "logging"} <= set(caller.get_server_metadata()["extensions"])
