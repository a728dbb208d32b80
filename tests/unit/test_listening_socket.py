"""The sockets that the listeners accept at."""

from __future__ import annotations

import socket

import pytest

from conch.transport.listener import listen


@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", socket.AF_INET), ("localhost", socket.AF_INET)])
def test_an_address_is_listened_at(address: str, family: socket.AddressFamily) -> None:
    """Port 0 is any free port; a name stands for its IPv4 address where it has one, as for Triton."""
    with listen(address, 0, reuse_port=False) as found, socket.create_connection(found.getsockname()):
        assert found.family is family
        assert found.getsockname()[0] == "127.0.0.1"


def test_a_taken_address_is_told_in_tritons_words() -> None:
    """The text ends with a space, as Triton's does."""
    with listen("127.0.0.1", 0, reuse_port=False) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"^Socket '127.0.0.1:{port}' already in use $"):
            listen("127.0.0.1", port, reuse_port=False)


def test_a_port_can_be_shared() -> None:
    """`reuse_port` on both sides lets two servers listen at one port."""
    with listen("127.0.0.1", 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", port, reuse_port=True) as second:
            assert second.getsockname()[1] == port


def test_an_address_of_another_machine_is_told() -> None:
    """Any other refusal names the address and the system's reason."""
    with pytest.raises(OSError, match=r"cannot listen on '192\.0\.2\.1:0': "):
        listen("192.0.2.1", 0, reuse_port=False)
