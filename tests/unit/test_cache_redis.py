"""The Redis cache against a Redis that is real, away, slow, full or full of garbage."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from conch.cache.api import Entry
from conch.cache.redis import RedisCache
from conch.types.dtype import UINT8
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.redis_server import RedisServer, needs_redis
from support.until import until


def entry(text: bytes = b"hello") -> Entry:
    return Entry(InferResponse([Tensor("Y", UINT8, (len(text),), text)]))


class FakeRedis:
    """A dictionary behind the two commands that are used; `trouble` is raised instead, `gate` holds calls up."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.trouble: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.calls: list[str] = []
        self.expiry: int | None = None

    def mget(self, names: list[str]) -> list[Any]:
        return self._do("mget", lambda: [self.values.get(name) for name in names])

    def set(self, name: str, value: bytes, ex: int | None) -> bool:
        self.expiry = ex
        return self._do("set", lambda: self.values.update({name: value}) is None)

    def close(self) -> None:
        """Nothing is held."""

    def _do(self, name: str, call: Callable[[], Any]) -> Any:
        assert self.gate.wait(20)
        self.calls.append(name)
        if self.trouble is not None:
            raise self.trouble
        return call()


class House:
    """A cache over `client`, its clock, and a loop that the test turns."""

    def __init__(self, client: Any, **options: Any) -> None:
        self.now = 0
        self.posted: queue.Queue[Callable[[], object]] = queue.Queue()
        chosen = {"connections": 2, "wait_ns": 1_000_000, **options}
        self.cache = RedisCache(client, self.posted.put, clock=lambda: self.now, **chosen)

    def get(self, key: bytes = b"k") -> bytes | str | None:
        """What a look-up gives: the contents, None, or "not asked"."""
        found: list[Entry | None] = []
        if not self.cache.ask(key, found.append):
            return "not asked"
        while not found:
            self.posted.get(timeout=20)()
        return None if found[0] is None else bytes(found[0].response.outputs[0].data)

    def put(self, key: bytes = b"k", made: Entry | None = None) -> None:
        """Returns when it has been dealt with."""
        self.cache.insert(key, made or entry())
        while self.cache._inserts:  # it is done in another thread
            threading.Event().wait(0.001)


@pytest.fixture
def client() -> FakeRedis:
    return FakeRedis()


@pytest.fixture
def house(client: FakeRedis) -> Iterator[House]:
    made = House(client)
    yield made
    client.gate.set()
    made.cache.close()


def test_what_was_put_is_found(house: House) -> None:
    """An entry comes back, an unknown key is a miss."""
    house.put()
    assert (house.get(), house.get(b"other")) == (b"hello", None)


def test_entries_expire_when_asked(client: FakeRedis) -> None:
    """`response_ttl` is given to Redis; without it nothing is."""
    for ttl, expiry in ((0, None), (30, 30)):
        house = House(client, ttl=ttl)
        house.put()
        house.cache.close()
        assert client.expiry == expiry


@pytest.mark.parametrize("value", [b"garbage", b"", 7, "text", b"conch-entry-1\n" + bytes(40)])
def test_garbage_is_a_miss(house: House, client: FakeRedis, value: Any) -> None:
    """Whatever lies under the key."""
    house.put()
    client.values = dict.fromkeys(client.values, value)
    assert house.get() is None


@pytest.mark.parametrize("trouble", [redis.ConnectionError("refused"), redis.TimeoutError("slow"), OSError("gone")])
def test_away_means_misses_and_one_warning(
    house: House, client: FakeRedis, trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failure Redis is left alone for a second; each trial that fails is silent; then it is used again."""
    caplog.set_level(logging.INFO, "conch.cache")
    house.put()
    client.trouble = trouble
    assert house.get() is None
    client.calls.clear()
    assert [house.get() for _ in range(10)] == ["not asked"] * 10
    assert client.calls == []
    house.now += 1_000_000_000
    assert [house.get(), house.get()] == [None, "not asked"]
    client.trouble = None
    house.now += 1_000_000_000
    assert house.get() == b"hello"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_full_redis_still_answers(house: House, client: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be stored is lost, with one warning; look-ups go on."""
    house.put()
    client.trouble = redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'.")
    house.put(b"2")
    client.trouble = None
    assert (house.get(), house.get(b"2")) == (b"hello", None)
    client.trouble = redis.ResponseError("OOM")
    house.put(b"3")
    assert len(caplog.records) == 1


def test_nobody_waits_long_for_a_connection(client: FakeRedis) -> None:
    """A look-up that has waited longer than wait_timeout is a miss, whatever Redis would say; many go in one trip."""
    house = House(client, connections=1)
    house.put()
    client.calls.clear()
    client.gate.clear()
    found: list[Entry | None] = []
    # The only thread is held up with the first, the others wait.
    assert house.cache.ask(b"k", found.append)
    while house.cache._asked:
        threading.Event().wait(0.001)
    for _ in range(5):
        house.cache.ask(b"k", found.append)
    house.now += 1_000_001
    assert house.cache.ask(b"k", found.append)
    client.gate.set()
    while len(found) < 7:
        house.posted.get(timeout=20)()
    house.cache.close()
    assert [each is not None for each in found] == [True, *[False] * 5, True]
    assert client.calls == ["mget"] * 2


def test_a_closed_cache_asks_nobody(house: House, client: FakeRedis) -> None:
    """After `close` everything is a miss."""
    house.cache.close()
    assert house.get() == "not asked"
    assert house.cache.insert(b"k", entry())
    assert client.calls == []


def test_closing_answers_who_still_waits(client: FakeRedis) -> None:
    """A look-up whose turn never came is a miss like any other: its request is not lost."""
    house = House(client, connections=1)
    client.gate.clear()
    # Its only thread is held up.
    house.cache.insert(b"k", entry())
    found: list[Entry | None] = []
    assert house.cache.ask(b"k", found.append)
    closing = threading.Thread(target=house.cache.close)
    closing.start()
    until(lambda: house.cache._closed)
    client.gate.set()
    closing.join()
    while not house.posted.empty():
        house.posted.get()()
    assert len(found) == 1


@needs_redis
def test_a_real_redis() -> None:
    """Entries go to a real Redis and come back; other keys of it are left alone."""
    with RedisServer() as server:
        client = server.client(socket_timeout=5)
        house = House(client, wait_ns=0)
        client.set("mine", "x")
        house.put(b"k", entry(bytes(1_000_000)))
        assert house.get() == bytes(1_000_000)
        assert sorted(client.keys()) == [b"conch:response:6b", b"mine"]
        # A list under our key.
        client.delete("conch:response:6b")
        client.lpush("conch:response:6b", "x")
        assert house.get() is None
        house.cache.close()
