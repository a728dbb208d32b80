"""From `--cache-config` to a cache, with Triton's refusals."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from conch.cache.api import Cache
from conch.cache.local import LocalCache
from conch.cache.redis import Post, RedisCache, connect
from conch.config.server import CacheOptions
from conch.types.error import InferError, internal, invalid

_log = logging.getLogger("conch.cache")

#: Settings of the Redis cache that are numbers: time-outs are milliseconds (0: none), response_ttl is seconds.
_REDIS_NUMBERS: Final[dict[str, int]] = {
    "port": 6379, "db": 0, "connect_timeout": 1000, "socket_timeout": 250, "pool_size": 4, "wait_timeout": 100,
    "response_ttl": 0,
}  # fmt: skip
_REDIS_TLS: Final = ("cert", "key", "cacert", "cacert_dir")
_REDIS_TEXTS: Final = ("host", "user", "password", "tls_enabled", "sni", *_REDIS_TLS)
#: With less, no answer at all could be kept.
_FEWEST_BYTES: Final = 1024


def open_cache(options: CacheOptions, post: Post) -> Cache | None:
    """The server's cache, None where there is none. Raises InferError. May block for a moment."""
    if not options.name:
        return None
    _log.info("Creating response cache with name: '%s'", options.name)
    if options.name == "local":
        return _local(options.settings)
    if options.name == "redis":
        return _redis(options.settings, post)
    raise invalid(
        f"unable to find 'libtritoncache_{options.name}.so' for cache. Searched: {options.directory}",
        "the caches are 'local' and 'redis'",
    )


def _local(settings: Mapping[str, str]) -> LocalCache:
    text = settings.get("size")
    if text is None:
        raise invalid(
            "Failed to initialize LocalCache: config didn't contain a valid 'size' field.",
            "say --cache-config=local,size=<bytes>",
        )
    _name_unknown("local", settings, ("size",))
    size = _natural(text)
    if size is None or size < _FEWEST_BYTES:
        raise internal(
            f"Failed to initialize LocalCache: size must be a number of bytes from {_FEWEST_BYTES} on, got: {text}",
            "say --cache-config=local,size=<bytes>, such as size=104857600",
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise internal(
            "Failed to initialize LocalCache: failed to allocate buffer",
            f"size is {size} bytes, and the machine has {memory} bytes of memory",
        )
    return LocalCache(size)


def _redis(settings: Mapping[str, str], post: Post) -> RedisCache:
    if "host" not in settings or "port" not in settings:
        raise invalid(
            "Failed to initialize RedisCache, didn't specify address. Must at a minimum specify 'host' and 'port' in "
            "the configuration - e.g. tritonserver --cache-config redis,host=redis --cache-config redis,port=6379 "
            "--model-repository=/models ..."
        )
    _name_unknown("redis", settings, (*_REDIS_TEXTS, *_REDIS_NUMBERS))
    numbers = {name: _number(name, settings.get(name), default) for name, default in _REDIS_NUMBERS.items()}
    if numbers["pool_size"] < 1 or not 0 < numbers["port"] < 65536:
        raise invalid("Failed to initialize RedisCache: pool_size must be at least 1, port 1 to 65535")
    if settings.get("sni", settings["host"]) != settings["host"]:
        raise invalid(
            f"Failed to initialize RedisCache: sni '{settings['sni']}' is not the host '{settings['host']}'",
            "give the name in Redis's certificate as 'host', and leave 'sni' out",
        )
    secure = settings.get("tls_enabled", "true" if any(name in settings for name in _REDIS_TLS) else "false").lower()
    if secure not in ("true", "false"):
        raise invalid(f"Failed to initialize RedisCache: tls_enabled must be true or false, got: {secure}")
    for name in _REDIS_TLS:
        if name in settings and not Path(settings[name]).exists():
            raise internal(f"Failed to initialize RedisCache: {name} '{settings[name]}' is not there")
    try:
        client = connect({**settings, "tls_enabled": secure}, numbers)
        _greet(client)
    except ImportError as error:
        raise internal(
            f"Failed to initialize RedisCache: {error}", "install the extra: pip install 'conch[redis]'"
        ) from error
    return RedisCache(
        client,
        post,
        connections=numbers["pool_size"],
        wait_ns=numbers["wait_timeout"] * 1_000_000,
        ttl=numbers["response_ttl"],
    )


def _greet(client: object) -> None:
    """A Redis that is not there yet may come; one that refuses us will go on refusing."""
    import redis  # noqa: PLC0415  only who uses it has to have it

    assert isinstance(client, redis.Redis)
    try:
        client.ping()
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise _failed(error) from error
    except redis.RedisError as error:
        reason = error.__cause__ or error.__context__
        if isinstance(reason, ssl.SSLError):
            raise _failed(error) from error
        _log.warning("Redis does not answer yet; requests are executed until it does: %s", error)


def _failed(error: Exception) -> InferError:
    return internal(f"Failed to initialize RedisCache: {error}", "look at user, password, db and the certificates")


def _number(name: str, text: str | None, default: int) -> int:
    if text is None:
        return default
    number = _natural(text)
    if number is None or number >= 2**31:
        raise invalid(f"Failed to initialize RedisCache: {name} must be a whole number, got: {text}")
    return number


def _natural(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _name_unknown(cache: str, settings: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Triton reads what it knows; whoever misspells something should hear of it."""
    for name in settings:
        if name not in known:
            _log.warning("--cache-config: the cache '%s' has no setting '%s': it has no effect", cache, name)
