"""The shared memory methods of GRPCInferenceService: regions registered, asked about and unregistered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from conch.memory.regions import Regions
from conch.pb import grpc_service_pb2 as pb

#: The type of a method's message, and what answers it.
Handler = tuple[type[Message], Callable[[Any], Message]]


def memory_handlers(regions: Regions) -> dict[str, Handler]:
    """Method name to handler."""

    def system_status(message: Any) -> Message:
        answer = pb.SystemSharedMemoryStatusResponse()
        for each in regions.system(message.name):
            into = answer.regions[each.name]
            into.name, into.key, into.offset, into.byte_size = each.name, each.key, each.offset, each.byte_size
        return answer

    def system_register(message: Any) -> Message:
        regions.register_system(message.name, message.key, message.offset, message.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def system_unregister(message: Any) -> Message:
        regions.unregister_system(message.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def cuda_status(message: Any) -> Message:
        answer = pb.CudaSharedMemoryStatusResponse()
        for each in regions.cuda(message.name):
            into = answer.regions[each.name]
            into.name, into.device_id, into.byte_size = each.name, each.device_id, each.byte_size
        return answer

    def cuda_register(message: Any) -> Message:
        regions.register_cuda(message.name, message.raw_handle, message.device_id, message.byte_size)
        return pb.CudaSharedMemoryRegisterResponse()

    def cuda_unregister(message: Any) -> Message:
        regions.unregister_cuda(message.name)
        return pb.CudaSharedMemoryUnregisterResponse()

    return {
        "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, system_status),
        "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, system_register),
        "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, system_unregister),
        "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, cuda_status),
        "CudaSharedMemoryRegister": (pb.CudaSharedMemoryRegisterRequest, cuda_register),
        "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, cuda_unregister),
    }
