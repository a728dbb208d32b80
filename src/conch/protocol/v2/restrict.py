"""Restricted APIs: which categories of the protocol are answered only with a key, and whether a request has it. Pure.

Worked out once per distinct request head, so it costs a request nothing (spec: protocol 1.16).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Final

from conch.config.server import Restriction
from conch.protocol.v2.routes import Action, Route
from conch.types.error import Code, InferError

#: What gRPC's metadata keys begin with.
GRPC_PREFIX: Final = "triton-grpc-protocol-"

#: By the name of the action; answers in themselves (a wrong path) have none.
_ACTIONS: Final[dict[str, str]] = {
    **dict.fromkeys(("LIVE", "READY", "MODEL_READY"), "health"),
    **dict.fromkeys(("SERVER_METADATA", "MODEL_METADATA"), "metadata"),
    **dict.fromkeys(("MODEL_CONFIG", "TRAFFIC", "ALL_TRAFFIC"), "model-config"),
    **dict.fromkeys(("INFER", "GENERATE", "GENERATE_STREAM"), "inference"),
    **dict.fromkeys([f"SHARED_MEMORY_{what}" for what in ("STATUS", "REGISTER", "UNREGISTER")], "shared-memory"),
    "STATISTICS": "statistics",
    **dict.fromkeys(("INDEX", "LOAD", "LOAD_GROUP", "UNLOAD", "NAMED_REPOSITORY"), "model-repository"),
    **dict.fromkeys(("CHANGE_TRAFFIC", "DELETE_TRAFFIC"), "model-repository"),
    **dict.fromkeys(("TRACE", "CHANGE_TRACE"), "trace"),
    **dict.fromkeys(("LOGGING", "CHANGE_LOGGING"), "logging"),
}

_METHODS: Final[dict[str, str]] = {
    **dict.fromkeys(("ServerLive", "ServerReady", "ModelReady", "Check", "Watch"), "health"),
    # Reflection tells what the methods look like.
    **dict.fromkeys(("ServerMetadata", "ModelMetadata", "ServerReflectionInfo"), "metadata"),
    "ModelConfig": "model-config",
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer"), "inference"),
    "ModelStatistics": "statistics",
    **dict.fromkeys(("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"), "model-repository"),
    **dict.fromkeys(
        [f"{kind}SharedMemory{what}" for kind in ("System", "Cuda") for what in ("Status", "Register", "Unregister")],
        "shared-memory",
    ),
    "TraceSetting": "trace",
    "LogSettings": "logging",
}


class RestrictedError(InferError):
    """The key is missing or wrong: 403 in HTTP, UNAVAILABLE in gRPC."""

    def __init__(self, noun: str, header: str) -> None:
        super().__init__(Code.UNAVAILABLE, f"This {noun} is restricted, expecting header '{header}'")


def action_category(action: Action) -> str:
    """The category of an HTTP action; empty for those that are answers in themselves."""
    return _ACTIONS.get(action.name, "")


def route_category(route: Route) -> str:
    """The category of a path, whatever the method: as with Triton, the key is asked for first."""
    return action_category(route.meant or route.action)


def method_category(path: str) -> str:
    """The category of a gRPC method, by its path; empty for methods that do not exist."""
    return _METHODS.get(path.rpartition("/")[2], "")


class Restrictions:
    """What one listener keeps for those who have the key. `prefix` goes before each key, `noun` is for the text."""

    def __init__(self, given: Iterable[Restriction], noun: str = "API", prefix: str = "") -> None:
        self._noun = noun
        self._keys = {category: (prefix + each.key, each.value) for each in given for category in each.categories}

    def check(self, category: str, header: Callable[[str], str | None]) -> RestrictedError | None:
        """What to answer, or None when the request may pass. `header` gives a header's value by its lower-case name.

        The time that it takes does not tell how much of a wrong value is right.
        """
        found = self._keys.get(category)
        if found is None:
            return None
        key, value = found
        given = header(key.lower())
        if given is not None and hmac.compare_digest(_bytes(given), _bytes(value)):
            return None
        return RestrictedError(self._noun, key)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
