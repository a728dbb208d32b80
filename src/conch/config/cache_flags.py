"""The response cache's flags: from their values to `CacheOptions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from conch.config.server import CacheOptions

_CREDENTIALS: Final = (("user", "TRITONCACHE_REDIS_USERNAME"), ("password", "TRITONCACHE_REDIS_PASSWORD"))


def cache_options(values: Mapping[str, Any], environ: Mapping[str, str]) -> CacheOptions:
    """`values` by flag; there is one cache at most.

    Redis's user and password may come from the environment, where other users of the machine cannot read them.
    """
    given = values.get("cache-config", ())
    if "response-cache-byte-size" in values:
        given = (("local", f"size={values['response-cache-byte-size']}"),)
    name = given[0][0] if given else ""
    settings: dict[str, str] = {}
    for _, setting in given:
        key, _, value = setting.partition("=")
        settings[key] = value
    if name == "redis":
        settings |= {key: environ[variable] for key, variable in _CREDENTIALS if environ.get(variable)}
    return CacheOptions(name, settings, values.get("cache-directory", CacheOptions().directory))


def deprecation(values: Mapping[str, Any]) -> list[str]:
    """Triton's warning where the old flag is used."""
    size = values.get("response-cache-byte-size")
    if size is None:
        return []
    warning = (
        "Warning: '--response-cache-byte-size' has been deprecated! This will default to the 'local' cache "
        "implementation with the provided byte size for its config. Please use '--cache-config' instead. The "
        f"equivalent --cache-config CLI args would be: '--cache-config=local,size={size}'"
    )
    return [warning]
