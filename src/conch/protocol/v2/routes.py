"""Which question a method and a path ask: the path table of the v2 protocol over HTTP."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Action(Enum):
    """What a request wants; the last three are answers in themselves."""

    LIVE = auto()
    READY = auto()
    SERVER_METADATA = auto()
    MODEL_READY = auto()
    MODEL_METADATA = auto()
    MODEL_CONFIG = auto()
    INFER = auto()
    STATISTICS = auto()
    INDEX = auto()
    LOAD = auto()
    UNLOAD = auto()
    NAMED_REPOSITORY = auto()
    UNSUPPORTED = auto()
    WRONG_METHOD = auto()
    NOT_FOUND = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """`name` and `version` are the path's own text, not percent-decoded, as Triton takes them; empty where absent."""

    action: Action
    name: str = ""
    version: str = ""


_MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_GET, _POST, _BOTH = frozenset({"GET"}), frozenset({"POST"}), frozenset({"GET", "POST"})

_EXACT: Final = {
    "/v2/health/live": (_GET, Action.LIVE),
    "/v2/health/ready": (_GET, Action.READY),
    "/v2": (_GET, Action.SERVER_METADATA),
    "/v2/models/stats": (_GET, Action.STATISTICS),
    "/v2/repository/index": (_POST, Action.INDEX),
    "/v2/logging": (_BOTH, Action.UNSUPPORTED),
    "/v2/trace/setting": (_BOTH, Action.UNSUPPORTED),
}

_PATTERNS: Final = tuple(
    (re.compile(pattern), methods, action)
    for pattern, methods, action in (
        (_MODEL + "/infer", _POST, Action.INFER),
        (_MODEL + "/ready", _GET, Action.MODEL_READY),
        (_MODEL, _GET, Action.MODEL_METADATA),
        (_MODEL + "/config", _GET, Action.MODEL_CONFIG),
        (_MODEL + "/stats", _GET, Action.STATISTICS),
        (_MODEL + "/generate(?:_stream)?", _POST, Action.UNSUPPORTED),
        (r"/v2/models/[^/]+/trace/setting", _BOTH, Action.UNSUPPORTED),
        (r"/v2/repository/models/(?P<name>[^/]+)/load", _POST, Action.LOAD),
        (r"/v2/repository/models/(?P<name>[^/]+)/unload", _POST, Action.UNLOAD),
        (r"/v2/repository/[^/]+/models/[^/]+/(?:un)?load", _POST, Action.NAMED_REPOSITORY),
        (r"/v2/repository/[^/]+/index", _POST, Action.INDEX),
        (r"/v2/(?:system|cuda)sharedmemory(?:/region/[^/]+)?/status", _GET, Action.UNSUPPORTED),
        (r"/v2/(?:system|cuda)sharedmemory/region/[^/]+/(?:un)?register", _POST, Action.UNSUPPORTED),
        (r"/v2/(?:system|cuda)sharedmemory/unregister", _POST, Action.UNSUPPORTED),
    )
)


def find(method: str, path: str) -> Route:
    """The route of `path`, which has no query string. Paths match in full: `/v2/` is not `/v2`."""
    exact = _EXACT.get(path)
    if exact is not None:
        methods, action = exact
        return Route(action if method in methods else Action.WRONG_METHOD)
    for pattern, methods, action in _PATTERNS:
        match = pattern.fullmatch(path)
        if match is not None:
            if method not in methods:
                return Route(Action.WRONG_METHOD)
            return Route(action, **{key: text or "" for key, text in match.groupdict().items()})
    return Route(Action.NOT_FOUND)
