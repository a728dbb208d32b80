"""The cache in a Redis server: shared by several servers, outlives them, and may be away at any time."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from conch.cache.api import Entry
from conch.cache.encoding import decode, encode

if TYPE_CHECKING:
    import redis

_log = logging.getLogger("conch.cache")

#: After a failure Redis is left alone for so long: nobody waits for time-outs one after another.
_PAUSE_NS: Final = 1_000_000_000
#: Look-ups that one round trip takes along, at most.
_TOGETHER: Final = 64
#: Look-ups and insertions that may wait for a connection; what comes on top is a miss, or lost.
_MOST_LOOKUPS: Final = 4096
_MOST_INSERTS: Final = 256
_MOST_INSERT_BYTES: Final = 1 << 28
_EVER_NS: Final = 1 << 62


class Post(Protocol):
    """Runs a call on the event loop's thread, soon. Any thread. RuntimeError when there is no loop any more."""

    def __call__(self, call: Callable[[], object], /) -> object: ...


@dataclass(slots=True)
class _Asked:
    key: bytes
    found: Callable[[Entry | None], object]
    asked_ns: int


class RedisCache:
    """Implements `cache.api.Far` with a few threads, each with a connection of its own.

    `wait_ns` is how long a look-up may wait for a connection (0: for ever), `ttl` how many seconds an entry is kept (0:
    for as long as Redis likes). A Redis that is away or slow means misses and one warning, until it answers again.
    """

    def __init__(
        self,
        client: redis.Redis,
        post: Post,
        *,
        connections: int,
        wait_ns: int,
        ttl: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._client = client
        self._post = post
        self._connections = connections
        self._wait_ns = wait_ns or _EVER_NS
        self._ttl = ttl or None
        self._clock = clock
        self._threads = ThreadPoolExecutor(connections, "conch-redis")
        self._lock = threading.Lock()
        self._asked: deque[_Asked] = deque()
        self._readers = 0
        self._inserts = 0
        self._insert_bytes = 0
        #: Redis is left alone until then; 0 while it answers.
        self._away_until_ns = 0
        #: What has been complained of, "read" or "write": once, until it works again.
        self._complained: set[str] = set()
        self._closed = False

    def ask(self, key: bytes, found: Callable[[Entry | None], object], /) -> bool:
        now = self._clock()
        with self._lock:
            if self._closed or now < self._away_until_ns or len(self._asked) >= _MOST_LOOKUPS:
                return False
            self._asked.append(_Asked(key, found, now))
            start = self._readers < self._connections
            if start:
                self._readers += 1
                self._threads.submit(self._read)
        return True

    def insert(self, key: bytes, entry: Entry, /) -> bool:
        with self._lock:
            full = self._inserts >= _MOST_INSERTS or self._insert_bytes + entry.size > _MOST_INSERT_BYTES
            if self._closed or full or self._clock() < self._away_until_ns:
                return True
            self._inserts += 1
            self._insert_bytes += entry.size
            self._threads.submit(self._write, key, entry)
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        # Those whose turn has not come are told like all others.
        left = [(each, None) for each in self._asked]
        self._asked.clear()
        with contextlib.suppress(RuntimeError):
            self._post(functools.partial(_tell, left))
        with contextlib.suppress(Exception):
            self._client.close()

    # --- in the threads ---

    def _read(self) -> None:
        """Answer look-ups until none waits: all that wait go in one round trip."""
        while True:
            with self._lock:
                asked = [self._asked.popleft() for _ in range(min(len(self._asked), _TOGETHER))]
                if not asked:
                    self._readers -= 1
                    return
            told = self._fetch(asked)
            # Without a loop nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._post(functools.partial(_tell, told))

    def _fetch(self, asked: Sequence[_Asked]) -> Sequence[tuple[_Asked, Entry | None]]:
        now = self._clock()
        fresh = [each for each in asked if now - each.asked_ns <= self._wait_ns]
        values: Sequence[Any] = ()
        if fresh and now >= self._away_until_ns:
            values = self._try("read", lambda: self._client.mget([_name(each.key) for each in fresh])) or ()
        found: dict[int, Entry | None] = {}
        for each, value in zip(fresh, values, strict=False):
            found[id(each)] = decode(value) if isinstance(value, bytes) else None
        return [(each, found.get(id(each))) for each in asked]

    def _write(self, key: bytes, entry: Entry) -> None:
        try:
            if self._clock() >= self._away_until_ns:
                self._try("write", lambda: self._client.set(_name(key), encode(entry), ex=self._ttl))
        finally:
            with self._lock:
                self._inserts -= 1
                self._insert_bytes -= entry.size

    def _try(self, kind: str, call: Callable[[], Any]) -> Any:
        """The call's result; None when Redis does not do what it should. `kind` is read or write."""
        import redis  # noqa: PLC0415  only who uses it has to have it

        try:
            result = call()
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            self._complain(kind, error, away=True)
            return None
        except Exception as error:  # noqa: BLE001  a full Redis, a reply that cannot be read: a cache must not do harm
            self._complain(kind, error, away=False)
            return None
        if kind in self._complained:
            with self._lock:
                self._complained.discard(kind)
                self._away_until_ns = 0
            _log.info("the response cache can %s Redis again", kind)
        return result

    def _complain(self, kind: str, error: Exception, *, away: bool) -> None:
        with self._lock:
            first = kind not in self._complained
            self._complained.add(kind)
            if away:
                self._away_until_ns = self._clock() + _PAUSE_NS
        if first:
            _log.warning(
                "the response cache cannot %s Redis; requests are executed until it can: %s: %s",
                kind,
                type(error).__name__,
                error,
            )


def _tell(told: Sequence[tuple[_Asked, Entry | None]]) -> None:
    for each, entry in told:
        each.found(entry)


def _name(key: bytes) -> str:
    return f"conch:response:{key.hex()}"


def connect(settings: Mapping[str, str], numbers: Mapping[str, int]) -> redis.Redis:
    """A client that keeps the time-outs. Raises ImportError where the library is missing; connects to nothing yet."""
    import redis  # noqa: PLC0415  only who uses it has to have it
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    def seconds(name: str) -> float | None:
        return numbers[name] / 1000 or None

    secure: dict[str, Any] = {}
    if settings["tls_enabled"] == "true":
        secure = {
            "ssl": True,
            "ssl_certfile": settings.get("cert"),
            "ssl_keyfile": settings.get("key"),
            "ssl_ca_certs": settings.get("cacert"),
            "ssl_ca_path": settings.get("cacert_dir"),
        }
    return redis.Redis(
        host=settings["host"],
        port=numbers["port"],
        db=numbers["db"],
        username=settings.get("user"),
        password=settings.get("password"),
        socket_connect_timeout=seconds("connect_timeout"),
        socket_timeout=seconds("socket_timeout"),
        # Once, at once: a connection that Redis has closed meanwhile is made anew.
        retry=Retry(NoBackoff(), 1),
        max_connections=numbers["pool_size"] + 1,
        **secure,
    )
