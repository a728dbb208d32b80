"""Content encodings: compressed bodies, and what the client says that it accepts."""

from __future__ import annotations

import gzip
import json
import zlib

from parity.cases import A_RAW, A_SIZED, ADD_SUB, B_RAW, B_SIZED, Case, Grpc, Http, b64, infer, post, tensor

BODY = json.dumps(ADD_SUB).encode()
HEAD = json.dumps({"inputs": [A_SIZED, B_SIZED], "parameters": {"binary_data_output": True}}).encode()
BINARY = HEAD + A_RAW + B_RAW
LENGTH = {"Inference-Header-Content-Length": str(len(HEAD))}

#: Long enough that any server would rather compress it.
LONG = {"inputs": [tensor("X", "FP32", [500], data=[0.5] * 500)]}


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def bodies() -> list[Case]:
    def sent(name: str, body: bytes, encoding: str, headers: dict[str, str] | None = None) -> Http:
        return infer(name, "add_sub", body, {"Content-Encoding": encoding, **(headers or {})})

    zipped = gzip.compress(BODY, mtime=0)
    return [
        sent("gzip body", zipped, "gzip"),
        sent("deflate body", zlib.compress(BODY), "deflate"),
        sent("deflate body without zlib's head", raw_deflate(BODY), "deflate"),
        sent("identity body", BODY, "identity"),
        sent("empty encoding", BODY, ""),
        sent("GZIP in capitals", zipped, "GZIP"),
        sent("x-gzip", zipped, "x-gzip"),
        sent("br", BODY, "br"),
        sent("gzip, gzip", gzip.compress(zipped, mtime=0), "gzip, gzip"),
        sent("gzip, but deflate said", zipped, "deflate"),
        sent("deflate, but gzip said", zlib.compress(BODY), "gzip"),
        sent("gzip said, plain sent", BODY, "gzip"),
        sent("deflate said, plain sent", BODY, "deflate"),
        sent("gzip body cut off", zipped[:-20], "gzip"),
        sent("gzip body with bytes behind", zipped + b"behind", "gzip"),
        sent("two gzip members", gzip.compress(BODY[:20], mtime=0) + gzip.compress(BODY[20:], mtime=0), "gzip"),
        sent("gzip of nothing", gzip.compress(b"", mtime=0), "gzip"),
        sent("empty gzip body", b"", "gzip"),
        sent("gzip of no JSON", gzip.compress(b"hello", mtime=0), "gzip"),
        sent("gzip binary", gzip.compress(BINARY, mtime=0), "gzip", LENGTH),
        sent("deflate binary", zlib.compress(BINARY), "deflate", LENGTH),
        sent("gzip binary, length of the compressed", gzip.compress(BINARY, mtime=0), "gzip",
             {"Inference-Header-Content-Length": "100000"}),
        infer("gzip raw request", "linear", gzip.compress(A_RAW, mtime=0),
              {"Content-Encoding": "gzip", "Inference-Header-Content-Length": "0"}),
        post("index, gzip", "/v2/repository/index", gzip.compress(b'{"ready":true}', mtime=0),
             {"Content-Encoding": "gzip"}),
    ]  # fmt: skip


def answers() -> list[Case]:
    wishes = (
        "gzip", "deflate", "identity", "br", "*", "gzip, deflate", "deflate, gzip", "gzip;q=0.5, deflate;q=0.8",
        "gzip;q=0.8, identity;q=0.9", "gzip;q=0", "gzip;q=0, deflate", "identity;q=0", "identity;q=0, gzip;q=0.1",
        "*;q=0.5, gzip;q=0.2", "GZIP", "gzip; q=1.0", "gzip ; q=1", "br, gzip", "gzip;q=x", "gzip;q=2", ",",
        "gzip,,deflate", "x-gzip", "deflate;q=0.3, gzip;q=0.3",
    )  # fmt: skip
    return [
        *(infer(f"accept {wish!r}", "counted", LONG, {"Accept-Encoding": wish}) for wish in wishes),
        infer("accept gzip, binary", "add_sub", BINARY, {**LENGTH, "Accept-Encoding": "gzip"}),
        infer("accept deflate, binary", "add_sub", BINARY, {**LENGTH, "Accept-Encoding": "deflate"}),
        infer("accept gzip, small", "add_sub", ADD_SUB, {"Accept-Encoding": "gzip"}),
        infer("accept gzip, an error", "add_sub", b"{", {"Accept-Encoding": "gzip"}),
        infer("both ways", "add_sub", gzip.compress(BODY, mtime=0),
              {"Content-Encoding": "gzip", "Accept-Encoding": "deflate"}),
        Http("http metadata, accept gzip", "GET", "/v2/models/add_sub", headers={"Accept-Encoding": "gzip"}),
    ]  # fmt: skip


def messages() -> list[Case]:
    message = {
        "model_name": "add_sub",
        "inputs": [tensor("INPUT0", "FP32", [1, 3]), tensor("INPUT1", "FP32", [1, 3])],
        "raw_input_contents": [b64(A_RAW), b64(B_RAW)],
    }
    return [
        *(Grpc(f"grpc compressed by {kind}", "ModelInfer", message, compression=kind) for kind in ("gzip", "deflate")),
        Grpc("grpc compressed question", "ModelMetadata", {"name": "add_sub"}, compression="gzip"),
        Grpc("grpc compressed, refused", "ModelInfer", {"model_name": "nobody"}, compression="deflate"),
    ]


CASES: list[Case] = bodies() + answers() + messages()
