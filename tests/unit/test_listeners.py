"""Listeners come and go, whichever of them fails."""

from __future__ import annotations

import asyncio

import pytest

from conch.listeners import Listeners
from conch.transport.http import HttpTransport


class Fake(HttpTransport):
    """Opens no socket; `fails` says whether it cannot be opened."""

    title = "fake"

    def __init__(self, port: int, *, fails: bool = False) -> None:
        self.at = port
        self.fails = fails
        self.closed = 0

    @property
    def port(self) -> int:
        return self.at

    async def start(self) -> None:
        if self.fails:
            raise OSError("Address already in use")

    def stop_accepting(self) -> None: ...

    async def close(self) -> None:
        self.closed += 1
        await asyncio.sleep(0)


def listeners() -> Listeners:
    return Listeners(*[None] * 7)  # type: ignore[arg-type]


def test_a_listener_that_cannot_be_opened_is_none() -> None:
    """Its port is not the server's, and it is closed."""

    async def main() -> None:
        house, bad, good = listeners(), Fake(1, fails=True), Fake(2)
        with pytest.raises(OSError, match="in use"):
            await house.add(bad, "")
        assert (house.http_port, bad.closed) == (0, 1)
        await house.add(good, "")
        assert house.http_port == 2
        await house.close()
        assert (bad.closed, good.closed) == (1, 1)

    asyncio.run(main())


def test_all_are_closed_though_one_is_removed_meanwhile() -> None:
    """A program may close its listener while the server ends."""

    async def main() -> None:
        house, made = listeners(), [Fake(number) for number in range(4)]
        for each in made:
            await house.add(each, "")
        await asyncio.gather(house.close(), house.remove(made[0]))
        assert all(each.closed for each in made)

    asyncio.run(main())
