"""ModelStreamInfer's messages: what wraps a response, an error and the end of a request."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from conch.pb import grpc_service_pb2 as pb
from conch.protocol.v2.grpc import GrpcCodec
from conch.protocol.v2.grpc_request import ONLY_TRITON_KEY, varint
from conch.types.request import InferRequest
from conch.types.response import InferResponse
from conch.types.tensor import Buffer

_FINAL_KEY: Final = "triton_final_response"


def _mark(final: bool) -> bytes:
    message = pb.ModelInferResponse()
    message.parameters[_FINAL_KEY].bool_param = final
    return message.SerializeToString()


_MARKS: Final = (_mark(False), _mark(True))
#: ModelStreamInferResponse.infer_response, length-delimited.
_INFER_RESPONSE_TAG: Final = b"\x12"


def encode_response(
    codec: GrpcCodec, request: InferRequest, response: InferResponse, final: bool
) -> tuple[list[Buffer], int]:
    """One response in pieces, and their length in all. Raises InferError when it cannot be sent."""
    parts, size = codec.encode_infer(request, response, _MARKS[final])
    lead = _INFER_RESPONSE_TAG + varint(size)
    parts[0] = lead + parts[0]
    return parts, size + len(lead)


def wants_empty_final(request: InferRequest) -> bool:
    """Whether the client asked to be told of an end that brings no response."""
    return request.form.head.parameters.get(ONLY_TRITON_KEY) is True


def encode_empty_final(request: InferRequest) -> bytes:
    head = request.form.head
    message = pb.ModelStreamInferResponse()
    response = message.infer_response
    response.model_name, response.model_version, response.id = head.model_name, head.model_version, request.id
    response.parameters[_FINAL_KEY].bool_param = True
    return message.SerializeToString()


def encode_early_error(text: str, message: Buffer) -> bytes:
    """A request that no model has seen: the answer carries its id alone.

    Raises ValueError when `message` cannot be read at all.
    """
    try:
        request = pb.ModelInferRequest.FromString(bytes(message))
    except DecodeError as error:
        raise ValueError("not a ModelInferRequest") from error
    answer = _error(text)
    answer.infer_response.id = request.id
    return answer.SerializeToString()


def encode_late_error(text: str, request: InferRequest, final: bool = True) -> bytes:
    """A request that its model, or the way there, has failed."""
    head = request.form.head
    answer = _error(text)
    response = answer.infer_response
    response.model_name, response.model_version, response.id = head.model_name, head.model_version, request.id
    response.parameters[_FINAL_KEY].bool_param = final
    return answer.SerializeToString()


def _error(text: str) -> pb.ModelStreamInferResponse:
    # Names of files, and what models say, may hold what UTF-8 has no bytes for.
    return pb.ModelStreamInferResponse(error_message=text.encode("utf-8", "replace").decode())
