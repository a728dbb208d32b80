"""What gRPC's server reflection says of the services here: their descriptors, by file or by symbol. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

from conch.pb import grpc_service_pb2, health_pb2, reflection_alpha_pb2, reflection_pb2
from conch.pb.pool import POOL
from conch.protocol.v2.grpc_request import unparsable
from conch.protocol.v2.grpc_status import Status
from conch.types.tensor import Buffer

SERVICES: Final = tuple([
    service.full_name
    for module in (health_pb2, reflection_pb2, reflection_alpha_pb2, grpc_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
])  # fmt: skip


def reflect(message: Buffer) -> bytes:
    """The answer to one ServerReflectionRequest; the messages of v1 and v1alpha are the same.

    Raises InferError when it is none; what is not found is said in the answer.
    """
    try:
        request = reflection_pb2.ServerReflectionRequest.FromString(bytes(message))
    except DecodeError as error:
        raise unparsable() from error
    answer = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
    try:
        _fill(request, answer)
    except KeyError as missing:
        answer.error_response.error_code = Status.NOT_FOUND
        answer.error_response.error_message = f"{missing.args[0]} is not known here"
    return answer.SerializeToString()


def _fill(request: Any, answer: Any) -> None:
    kind = request.WhichOneof("message_request")
    if kind == "list_services":
        for name in SERVICES:
            answer.list_services_response.service.add(name=name)
    elif kind == "file_by_filename":
        _describe(POOL.FindFileByName(request.file_by_filename), answer)
    elif kind == "file_containing_symbol":
        _describe(_find(request.file_containing_symbol), answer)
    elif kind == "file_containing_extension":
        raise KeyError(f"an extension of '{request.file_containing_extension.containing_type}'")
    elif kind == "all_extension_numbers_of_type":
        answer.all_extension_numbers_response.base_type_name = POOL.FindMessageTypeByName(
            request.all_extension_numbers_of_type
        ).full_name
    else:
        answer.error_response.error_code = Status.INVALID_ARGUMENT
        answer.error_response.error_message = "the request asks nothing"


def _find(symbol: str) -> FileDescriptor:
    service, _, method = symbol.rpartition(".")
    if service in SERVICES and method in POOL.FindServiceByName(service).methods_by_name:
        # The pool does not look for methods.
        symbol = service
    return POOL.FindFileContainingSymbol(symbol)


def _describe(file: FileDescriptor, answer: Any) -> None:
    """The file, and after it those that it needs."""
    seen: set[str] = set()
    for each in _closure(file):
        if each.name not in seen:
            seen.add(each.name)
            answer.file_descriptor_response.file_descriptor_proto.append(each.serialized_pb)


def _closure(file: FileDescriptor) -> Iterator[FileDescriptor]:
    yield file
    for needed in file.dependencies:
        yield from _closure(needed)
