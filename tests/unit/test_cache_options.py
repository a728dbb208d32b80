"""`--cache-config` from the command line to a cache, and what is refused on the way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from conch.cache.local import LocalCache
from conch.cache.open import open_cache
from conch.cache.redis import RedisCache
from conch.config.flags import deprecations, parse
from conch.config.server import CacheOptions
from conch.types.error import InferError
from support.certificates import Authority
from support.redis_server import RedisServer, needs_redis


def options(*flags: str, environ: dict[str, str] | None = None) -> CacheOptions:
    return parse(["--model-repository=/r", *flags], "tritonserver", environ or {}).cache


def opened(*flags: str, environ: dict[str, str] | None = None) -> Any:
    return open_cache(options(*flags, environ=environ), lambda call: call())


def refusal(*flags: str) -> str:
    with pytest.raises(InferError) as caught:
        opened(*flags)
    return str(caught.value)


def test_no_flag_no_cache() -> None:
    """A server has no cache unless it is asked for one."""
    assert opened() is None


def test_settings_are_collected() -> None:
    """Each flag is one setting; the last of a name counts, and a value may hold anything."""
    made = options("--cache-config=redis,host=h", "--cache-config=redis,port=1", "--cache-config=redis,password=a,b=c",
                   "--cache-config=redis,port=2", "--cache-directory=/caches")  # fmt: skip
    assert (made.name, made.settings, made.directory) == (
        "redis", {"host": "h", "port": "2", "password": "a,b=c"}, "/caches"
    )  # fmt: skip
    assert "a,b" not in repr(made)


def test_the_environment_has_the_credentials() -> None:
    """TRITONCACHE_REDIS_USERNAME and _PASSWORD are for Redis alone."""
    environ = {"TRITONCACHE_REDIS_USERNAME": "ann", "TRITONCACHE_REDIS_PASSWORD": "secret"}
    assert options("--cache-config=redis,host=h", environ=environ).settings == {
        "host": "h", "user": "ann", "password": "secret"
    }  # fmt: skip
    assert options("--cache-config=local,size=5", environ=environ).settings == {"size": "5"}


def test_the_deprecated_flag_means_the_local_cache() -> None:
    """`--response-cache-byte-size` does what it did, with Triton's warning."""
    made = opened("--response-cache-byte-size=1048576")
    assert isinstance(made, LocalCache)
    assert made.size == 1048576
    (warning,) = deprecations(["--response-cache-byte-size=1048576"], "tritonserver")
    assert warning == (
        "Warning: '--response-cache-byte-size' has been deprecated! This will default to the 'local' cache "
        "implementation with the provided byte size for its config. Please use '--cache-config' instead. The "
        "equivalent --cache-config CLI args would be: '--cache-config=local,size=1048576'"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cache-config=local,sizes=5",),
         "Invalid argument: Failed to initialize LocalCache: config didn't contain a valid 'size' field."),
        (("--cache-config=local,size=many",),
         "Internal: Failed to initialize LocalCache: size must be a number of bytes from 1024 on, got: many"),
        (("--cache-config=local,size=100",),
         "Internal: Failed to initialize LocalCache: size must be a number of bytes from 1024 on, got: 100"),
        (("--cache-config=local,size=9999999999999999",),
         "Internal: Failed to initialize LocalCache: failed to allocate buffer"),
        (("--cache-config=local,size=-1",),
         "Internal: Failed to initialize LocalCache: size must be a number of bytes from 1024 on, got: -1"),
        (("--cache-config=disk,path=/c", "--cache-directory=/caches"),
         "Invalid argument: unable to find 'libtritoncache_disk.so' for cache. Searched: /caches"),
        (("--cache-config=redis,host=h",),
         "Invalid argument: Failed to initialize RedisCache, didn't specify address. Must at a minimum specify"),
        (("--cache-config=redis,host=h", "--cache-config=redis,port=x"),
         "Invalid argument: Failed to initialize RedisCache: port must be a whole number, got: x"),
        (("--cache-config=redis,host=h", "--cache-config=redis,port=0"),
         "Invalid argument: Failed to initialize RedisCache: pool_size must be at least 1, port 1 to 65535"),
        (("--cache-config=redis,host=h", "--cache-config=redis,port=1", "--cache-config=redis,tls_enabled=maybe"),
         "Invalid argument: Failed to initialize RedisCache: tls_enabled must be true or false, got: maybe"),
        (("--cache-config=redis,host=h", "--cache-config=redis,port=1", "--cache-config=redis,sni=other"),
         "Invalid argument: Failed to initialize RedisCache: sni 'other' is not the host 'h'"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_cache_is_refused(flags: tuple[str, ...], message: str) -> None:
    """In Triton's words where it has some."""
    assert refusal(*flags).startswith(message)


def test_unknown_settings_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """A setting that nothing reads is warned of; the cache works."""
    assert isinstance(opened("--cache-config=local,size=9999", "--cache-config=local,ttl=3"), LocalCache)
    assert "'local' has no setting 'ttl'" in caplog.text


def test_a_redis_that_is_not_there_yet_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """The server starts, and says so."""
    caplog.set_level(logging.INFO, "conch.cache")
    cache = opened(*RedisServer().flags)
    assert isinstance(cache, RedisCache)
    assert "Redis does not answer yet" in caplog.text
    cache.close()


@needs_redis
def test_a_redis_that_refuses_us_is_an_error() -> None:
    """A wrong password will not get better; the right one, from the environment, opens the door."""
    with RedisServer("--requirepass", "secret") as server:
        wrong = refusal(*server.flags, "--cache-config=redis,password=guess")
        assert wrong.startswith("Internal: Failed to initialize RedisCache: ")
        cache = opened(*server.flags, environ={"TRITONCACHE_REDIS_PASSWORD": "secret"})
        assert isinstance(cache, RedisCache)
        cache.close()


@needs_redis
def test_redis_over_tls(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The authority checks Redis, Redis checks our certificate; without the authority nothing is trusted."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("redis")
    own, own_key = authority.issue("conch")
    secure = (
        "--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(authority.root),
        "--tls-auth-clients", "yes",
    )  # fmt: skip
    with RedisServer(*secure, tls=True) as server:
        trusted = tuple(
            f"--cache-config=redis,{name}={path}"
            for name, path in (("cacert", authority.root), ("cert", own), ("key", own_key))
        )
        cache = opened(*server.flags, *trusted)
        cache.close()
        assert "does not answer" not in caplog.text
        untrusted = refusal(*server.flags, "--cache-config=redis,tls_enabled=true")
        assert untrusted.startswith("Internal: Failed to initialize RedisCache: ")
        assert "CERTIFICATE_VERIFY_FAILED" in untrusted
        missing = refusal(*server.flags, "--cache-config=redis,cacert=/nowhere.pem")
        assert missing == "Internal: Failed to initialize RedisCache: cacert '/nowhere.pem' is not there"
