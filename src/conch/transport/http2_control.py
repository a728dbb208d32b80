"""The frames of HTTP/2 that carry neither headers nor data (RFC 9113 6.3 to 6.9)."""

# ruff: noqa: ARG001  all take what a frame has

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from conch.transport import http2_frames as h2
from conch.transport.http2_frames import ACK, MAX_31, UINT32, ConnectionFault, ErrorCode

if TYPE_CHECKING:
    from conch.transport.http2 import Connection


def window_update(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if len(payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE must have 4 bytes")
    connection.spend()
    increment = UINT32.unpack(payload)[0] & MAX_31
    sender = connection.sender
    if number == 0:
        if increment == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with an increment of 0")
        sender.add_window(increment)
    else:
        connection.check_not_idle("WINDOW_UPDATE", number)
        stream = connection.streams.get(number)
        if stream is None:
            return
        if increment == 0:
            connection.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        stream.window += increment
        if sender.stream_window + stream.window > MAX_31:
            connection.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
    if sender.blocked:
        connection.mark()


def settings(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS belong to stream 0")
    if len(payload) % 6 or (flags & ACK and payload):
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with {len(payload)} bytes")
    # Each may touch every stream.
    connection.spend(max(1, len(payload) // 6))
    if flags & ACK:
        return
    connection.greeted = True
    for name, value in h2.read_settings(payload):
        if name == h2.SETTINGS_INITIAL_WINDOW_SIZE:
            connection.sender.set_stream_window(value, list(connection.streams.values()))
        elif name == h2.SETTINGS_MAX_FRAME_SIZE:
            if not h2.DEFAULT_FRAME_SIZE <= value < 1 << 24:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE of {value}")
            connection.sender.frame_size = value
        elif name == h2.SETTINGS_HEADER_TABLE_SIZE and value < 4096:
            connection.table_shrunk()
        elif name == h2.SETTINGS_ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH of {value}")
    connection.sender.output.append(h2.frame(h2.SETTINGS, ACK, 0))
    if connection.sender.blocked:
        connection.mark()


def ping(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING belongs to stream 0")
    if len(payload) != 8:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING must have 8 bytes")
    connection.spend()
    if not flags & ACK:
        connection.received_ping()
        connection.sender.output.append(h2.frame(h2.PING, ACK, 0, payload))


def rst_stream(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if len(payload) != 4:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM must have 4 bytes")
    connection.check_not_idle("RST_STREAM", number)
    connection.spend()
    stream = connection.streams.pop(number, None)
    if stream is not None:
        connection.sender.drop(stream)
        stream.dropped()


def priority(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if number == 0:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
    connection.spend()
    if len(payload) != 5:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY must have 5 bytes")


def push_promise(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")


def goaway(connection: Connection[Any], flags: int, number: int, payload: bytes) -> None:
    if number:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY belongs to stream 0")
    if len(payload) < 8:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY must have 8 bytes")
    # The client closes when its streams are answered; nothing to do.
    connection.spend()


#: By type of frame. Called with the frame's flags, stream and payload; raises ConnectionFault.
CONTROL: Final[dict[int, Callable[[Connection[Any], int, int, bytes], None]]] = {
    h2.PRIORITY: priority,
    h2.RST_STREAM: rst_stream,
    h2.SETTINGS: settings,
    h2.PUSH_PROMISE: push_promise,
    h2.PING: ping,
    h2.GOAWAY: goaway,
    h2.WINDOW_UPDATE: window_update,
}
