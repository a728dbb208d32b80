"""Which question a method and a path ask: the path table of the v2 protocol over HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Action(Enum):
    """What a request wants; the last two are answers in themselves."""

    LIVE = auto()
    READY = auto()
    SERVER_METADATA = auto()
    MODEL_READY = auto()
    MODEL_METADATA = auto()
    MODEL_CONFIG = auto()
    INFER = auto()
    GENERATE = auto()
    GENERATE_STREAM = auto()
    STATISTICS = auto()
    TRACE = auto()
    CHANGE_TRACE = auto()
    LOGGING = auto()
    CHANGE_LOGGING = auto()
    INDEX = auto()
    LOAD = auto()
    LOAD_GROUP = auto()
    UNLOAD = auto()
    TRAFFIC = auto()
    ALL_TRAFFIC = auto()
    CHANGE_TRAFFIC = auto()
    DELETE_TRAFFIC = auto()
    NAMED_REPOSITORY = auto()
    SHARED_MEMORY_STATUS = auto()
    SHARED_MEMORY_REGISTER = auto()
    SHARED_MEMORY_UNREGISTER = auto()
    WRONG_METHOD = auto()
    NOT_FOUND = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """`name` and `version` are the path's own text, not percent-decoded, as Triton takes them; empty where absent.

    Of shared memory, `name` is a region's and `kind` is `system` or `cuda`.
    """

    action: Action
    name: str = ""
    version: str = ""
    kind: str = ""
    #: What the right method would have asked, where the method is wrong.
    meant: Action | None = None


_CHANGEABLE = frozenset({"GET", "PUT", "DELETE"})
_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_MEMORY = r"/v2/(?P<kind>system|cuda)sharedmemory(?:/region/(?P<name>[^/]+))?"
_GET, _POST, _BOTH = frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "POST"})

_EXACT: Final = {
    "/v2/health/live": (_GET, Action.LIVE),
    "/v2/health/ready": (_GET, Action.READY),
    "/v2": (_GET, Action.SERVER_METADATA),
    "/v2/models/stats": (_GET, Action.STATISTICS),
    "/v2/repository/index": (_POST, Action.INDEX),
    "/v2/repository/load": (_POST, Action.LOAD_GROUP),
    "/v2/logging": (_BOTH, Action.LOGGING),
    "/v2/trace/setting": (_BOTH, Action.TRACE),
    "/v2/traffic": (_GET, Action.ALL_TRAFFIC),
}

_PATTERNS: Final = tuple(
    (re.compile(pattern), methods, action)
    for pattern, methods, action in (
        (_MODEL + "/infer", _POST, Action.INFER),
        (_MODEL + "/ready", _GET, Action.MODEL_READY),
        (_MODEL, _GET, Action.MODEL_METADATA),
        (_MODEL + "/config", _GET, Action.MODEL_CONFIG),
        (_MODEL + "/stats", _GET, Action.STATISTICS),
        (_MODEL + "/generate", _POST, Action.GENERATE),
        (_MODEL + "/generate_stream", _POST, Action.GENERATE_STREAM),
        (r"/v2/models/(?P<name>[^/]+)/trace/setting", _BOTH, Action.TRACE),
        (r"/v2/models/(?P<name>[^/]+)/traffic", _CHANGEABLE, Action.TRAFFIC),
        (r"/v2/repository/models/(?P<name>[^/]+)/load", _POST, Action.LOAD),
        (r"/v2/repository/models/(?P<name>[^/]+)/unload", _POST, Action.UNLOAD),
        (r"/v2/repository/[^/]+/models/[^/]+/(?:un)?load", _POST, Action.NAMED_REPOSITORY),
        (r"/v2/repository/[^/]+/index", _POST, Action.INDEX),
        (_MEMORY + "/status", _GET, Action.SHARED_MEMORY_STATUS),
        (_MEMORY + "/register", _POST, Action.SHARED_MEMORY_REGISTER),
        (_MEMORY + "/unregister", _POST, Action.SHARED_MEMORY_UNREGISTER),
    )
)


#: What other methods ask where a GET asks something else.
_CHANGES: Final = {
    ("POST", Action.TRACE): Action.CHANGE_TRACE,
    ("POST", Action.LOGGING): Action.CHANGE_LOGGING,
    ("PUT", Action.TRAFFIC): Action.CHANGE_TRAFFIC,
    ("DELETE", Action.TRAFFIC): Action.DELETE_TRAFFIC,
}


def find(method: str, path: str) -> Route:
    """The route of `path`, which has no query string. Paths match in full: `/v2/` is not `/v2`."""
    exact = _EXACT.get(path)
    if exact is not None:
        methods, action = exact
        if method not in methods:
            return Route(Action.WRONG_METHOD, meant=action)
        return Route(_CHANGES.get((method, action), action))
    for pattern, methods, action in _PATTERNS:
        match = pattern.fullmatch(path)
        if match is not None:
            if method not in methods:
                return Route(Action.WRONG_METHOD, meant=action)
            action = _CHANGES.get((method, action), action)
            texts = {key: text or "" for key, text in match.groupdict().items()}
            return Route(action, texts.get("name", ""), texts.get("version", ""), texts.get("kind", ""))
    return Route(Action.NOT_FOUND)
