"""What a call is told that breaks gRPC's own rules."""

from __future__ import annotations

from conch.protocol.v2.grpc_status import Status


class GrpcFault(Exception):  # noqa: N818  not an error of ours: a call that is answered with a status
    """The call breaks gRPC's own rules and is answered with this status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
