"""Asks a server all cases and writes each answer down in a form that two servers can be compared by."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from conch.pb import grpc_service_pb2 as pb
from conch.pb import health_pb2
from conch.pb.pool import POOL
from parity.cases import Case, Grpc, Http
from support.server import Server

Answer = dict[str, Any]
TIMEOUT = 15.0
KEPT_HEADERS = ("Content-Type", "Inference-Header-Content-Length")


def replay(server: Server, cases: Iterable[Case], repository: Path) -> dict[str, Answer]:
    """Every answer by the name of its case. A server that hangs or hangs up gives an answer that says so."""
    answers: dict[str, Answer] = {}
    with grpc.insecure_channel(server.grpc, options=[("grpc.enable_retries", 0)]) as channel:
        for case in cases:
            if case.name in answers:
                raise ValueError(f"two cases are named {case.name!r}")
            answer = ask_http(server, case) if isinstance(case, Http) else ask_grpc(channel, case)
            answers[case.name] = mask(answer, str(repository))
            if case.settle:
                _settle(server)
    return answers


def ask_http(server: Server, case: Http) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT)
    try:
        connection.request(case.method, case.path, body=case.body or None, headers=case.headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"broken": type(error).__name__}
    finally:
        connection.close()
    headers = {name: response.headers[name] for name in KEPT_HEADERS if response.headers[name] is not None}
    answer: Answer = {"status": response.status, "headers": headers}
    length = headers.get("Inference-Header-Content-Length")
    if length is not None:
        size = int(length)
        answer["body"], answer["binary"] = json.loads(body[:size]), body[size:].hex()
        return answer
    if body:
        try:
            answer["body"] = json.loads(body)
        except ValueError:
            answer["text"] = body.decode(errors="replace")
    return answer


def ask_grpc(channel: grpc.Channel, case: Grpc) -> Answer:
    types = _types(case)
    request = json_format.ParseDict(case.message, types[0]()).SerializeToString() if types else b""
    call = channel.unary_unary(f"/{case.service}/{case.rpc}")
    try:
        data = call(request, timeout=TIMEOUT)
    except grpc.RpcError as error:
        return {"code": error.code().name, "message": error.details()}
    if types is None:
        return {"code": "OK", "message": data.hex()}
    reply = types[1].FromString(data)
    message = json_format.MessageToDict(
        reply,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=case.rpc == "ModelStatistics",
        descriptor_pool=POOL,
    )
    return {"code": "OK", "message": message}


def _types(case: Grpc) -> tuple[Any, Any] | None:
    """The messages of a call; None for a method that does not exist."""
    if case.service == "grpc.health.v1.Health":
        return health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    names = [f"{case.rpc}{kind}" for kind in ("Request", "Response")]
    return (getattr(pb, names[0]), getattr(pb, names[1])) if hasattr(pb, names[0]) else None


def mask(value: Any, repository: str) -> Any:
    """`value` without what differs from run to run: times, the server's version, where the repository lies."""
    if isinstance(value, dict):
        masked = {key: mask(item, repository) for key, item in value.items()}
        if "ns" in masked and "count" in masked:
            masked["ns"] = "<ns>"
        if masked.get("last_inference", 0) not in (0, "0"):
            masked["last_inference"] = "<ms>"
        if "extensions" in masked:
            masked["version"] = "<version>"
        return masked
    if isinstance(value, list):
        return [mask(item, repository) for item in value]
    if isinstance(value, str):
        return value.replace(repository, "<repository>")
    return value


def text(answer: Answer) -> str:
    """The form in which answers are compared: the order of members counts, NaN equals NaN."""
    return json.dumps(answer, indent=1, ensure_ascii=False)


def _settle(server: Server) -> None:
    """Unloading ends after the reply: waits until it has."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT)
        connection.request("POST", "/v2/repository/index")
        index = json.loads(connection.getresponse().read())
        connection.close()
        if all(line.get("state") != "UNLOADING" for line in index):
            return
        time.sleep(0.02)
    raise TimeoutError("a model was still UNLOADING after 15 s")
