"""Asks a server all cases and writes each answer down in a form that two servers can be compared by."""

from __future__ import annotations

import http.client
import json
import os
import time
import zlib
from collections.abc import Iterable
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from conch.pb import grpc_service_pb2 as pb
from conch.pb import health_pb2
from conch.pb.pool import POOL
from parity import memory
from parity.cases import Case, Grpc, Http, Memory, Stream
from parity.polling import Change, Upheaval
from parity.schedules import Schedule
from support.server import Server

Answer = dict[str, Any]
TIMEOUT = 60.0
#: What a server that hangs says. No recorded answer is like this.
SILENCE = ({"broken": "TimeoutError"}, {"code": "DEADLINE_EXCEEDED", "message": "Deadline Exceeded"})
KEPT_HEADERS = ("Content-Type", "Inference-Header-Content-Length", "Content-Encoding", "Accept-Encoding")
COMPRESSIONS = {"": None, "gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
#: Members that are maps: their order means nothing.
MAPS = ("parameters", "settings", "regions", "response_stats")


def replay(server: Server, cases: Iterable[Case], repository: Path) -> dict[str, Answer]:
    """Every answer by the name of its case. A server that hangs or hangs up gives an answer that says so."""
    answers: dict[str, Answer] = {}
    shared = SharedMemory(f"conch_parity_{os.getpid()}", create=True, size=memory.SIZE)
    names = [Path(f"/dev/shm/{shared.name}_{n + 1}") for n in range(memory.NAMES)]
    try:
        for name in names:
            name.hardlink_to(f"/dev/shm/{shared.name}")
        shared.buf[: len(memory.CONTENT)] = memory.CONTENT
        with grpc.insecure_channel(server.grpc, options=[("grpc.enable_retries", 0)]) as channel:
            for case in cases:
                if case.name in answers:
                    raise ValueError(f"two cases are named {case.name!r}")
                answer = _ask(server, channel, case, shared, repository)
                if answer in SILENCE:
                    raise AssertionError(f"{case.name}: no answer within {TIMEOUT:g} s\n{server.stacks()}")
                answers[case.name] = mask(answer, {str(repository): "<repository>", shared.name: memory.KEY})
                if isinstance(case, Http | Grpc) and case.settle:
                    _settle(server)
    finally:
        for name in names:
            name.unlink(missing_ok=True)
        shared.close()
        shared.unlink()
    return answers


def _ask(server: Server, channel: grpc.Channel, case: Case, shared: SharedMemory, repository: Path) -> Answer:
    if isinstance(case, Http):
        return ask_http(server, case, f"/{shared.name}".encode())
    if isinstance(case, Grpc):
        return ask_grpc(channel, case, f"/{shared.name}")
    if isinstance(case, Stream):
        return ask_stream(channel, case)
    if isinstance(case, Schedule | Upheaval | Change):
        return case.play(server, repository)
    assert isinstance(case, Memory)
    return {"memory": bytes(shared.buf[case.offset : case.offset + case.size]).hex()}


def ask_http(server: Server, case: Http, key: bytes = b"") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=TIMEOUT)
    body = case.body.replace(memory.KEY.encode(), key)
    try:
        connection.request(case.method, case.path, body=body or None, headers=case.headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return {"broken": type(error).__name__}
    finally:
        connection.close()
    headers = {name: response.headers[name] for name in KEPT_HEADERS if response.headers[name] is not None}
    answer: Answer = {"status": response.status, "headers": headers}
    if response.headers["Content-Encoding"]:
        # Both kinds have a head that says which it is.
        body = zlib.decompress(body, wbits=zlib.MAX_WBITS | 32)
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


def ask_grpc(channel: grpc.Channel, case: Grpc, key: str = "") -> Answer:
    types = _types(case)
    asked = json.loads(json.dumps(case.message).replace(memory.KEY, key))
    request = json_format.ParseDict(asked, types[0]()).SerializeToString() if types else b""
    call = channel.unary_unary(f"/{case.service}/{case.rpc}")
    try:
        data = call(request, timeout=TIMEOUT, metadata=case.metadata, compression=COMPRESSIONS[case.compression])
    except grpc.RpcError as error:
        return {"code": error.code().name, "message": error.details()}
    if types is None:
        return {"code": "OK", "message": data.hex()}
    reply = types[1].FromString(data)
    return {"code": "OK", "message": _plain(reply, zeroes=case.rpc == "ModelStatistics")}


def ask_stream(channel: grpc.Channel, case: Stream) -> Answer:
    messages = [json_format.ParseDict(m, pb.ModelInferRequest()).SerializeToString() for m in case.messages]
    call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
        iter(messages), timeout=TIMEOUT, metadata=case.metadata, compression=COMPRESSIONS[case.compression]
    )
    replies: list[Any] = []
    try:
        for data in call:
            replies.append(_plain(pb.ModelStreamInferResponse.FromString(data)))  # noqa: PERF401
    except grpc.RpcError as error:
        status = {"code": error.code().name, "message": error.details()}
    else:
        status = {"code": "OK"}
    if case.by_id:
        replies.sort(key=lambda reply: reply.get("infer_response", {}).get("id", ""))
    return {**status, "replies": replies}


def _plain(message: Any, *, zeroes: bool = False) -> Any:
    return json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=zeroes,
        descriptor_pool=POOL,
    )


def _types(case: Grpc) -> tuple[Any, Any] | None:
    """The messages of a call; None for a method that does not exist."""
    if case.service == "grpc.health.v1.Health":
        return health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    names = [f"{case.rpc}{kind}" for kind in ("Request", "Response")]
    return (getattr(pb, names[0]), getattr(pb, names[1])) if hasattr(pb, names[0]) else None


def mask(value: Any, words: dict[str, str]) -> Any:
    """`value` without what differs from run to run: times, the server's version, where things lie (`words`)."""
    if isinstance(value, dict):
        masked = {key: mask(item, words) for key, item in value.items()}
        for name in MAPS:
            if isinstance(masked.get(name), dict):
                masked[name] = dict(sorted(masked[name].items()))
        if "ns" in masked and "count" in masked:
            masked["ns"] = "<ns>"
        if masked.get("last_inference", 0) not in (0, "0"):
            masked["last_inference"] = "<ms>"
        if "extensions" in masked:
            masked["version"] = "<version>"
        return masked
    if isinstance(value, list):
        return [mask(item, words) for item in value]
    if isinstance(value, str):
        for word, name in words.items():
            value = value.replace(word, name)
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
    raise TimeoutError(f"a model was still UNLOADING after {TIMEOUT:g} s")
