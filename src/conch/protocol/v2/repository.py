"""The JSON bodies of repository requests: index, load and unload."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from conch.protocol.v2.head import boolean, text
from conch.protocol.v2.lenient import parse
from conch.types.error import internal, invalid
from conch.types.tensor import Buffer


def read_index(body: Buffer) -> bool:
    """Whether only ready models are asked for."""
    root = parse(body) if body else {}
    ready = root.get("ready", False) if isinstance(root, dict) else False
    if not isinstance(ready, bool):
        raise invalid("Invalid value for 'ready': expected a boolean")
    return ready


def read_load(body: Buffer) -> dict[str, str | bytes]:
    """The load parameters: `config` as text, `file:<path>` as the bytes that the base64 text stands for."""
    found: dict[str, str | bytes] = {}
    for key, value in _parameters(body).items():
        content = text(value)
        if key == "config":
            found[key] = content
        elif key.startswith("file:"):
            try:
                found[key] = base64.b64decode(content, validate=True)
            except (binascii.Error, ValueError) as error:
                raise invalid(f"failed to decode load parameter '{key}': expected base64 text, {error}") from None
        else:
            raise internal("unexpected error on creating Triton parameter", f"'{key}' is not a load parameter")
    return found


def read_unload(body: Buffer) -> bool:
    """Whether the models that the model depends on go too. Other parameters are ignored, as Triton ignores them."""
    return boolean(_parameters(body).get("unload_dependents", False))


def _parameters(body: Buffer) -> dict[str, Any]:
    root = parse(body) if body else {}
    parameters = root.get("parameters", {}) if isinstance(root, dict) else {}
    if not isinstance(parameters, dict):
        raise internal("attempt to get members for non-object")
    return parameters
