"""The JSON bodies of repository requests: index, load and unload."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from conch.protocol.v2.head import boolean, text
from conch.protocol.v2.lenient import parse
from conch.types.error import internal, invalid
from conch.types.tensor import Buffer

#: The load parameters that are on or off (`repository.override`).
SWITCHES: Final = ("skip_gate", "force_reload")
_GROUP_KEYS: Final = frozenset({"name", "parameters"})
_GROUP_EXAMPLE: Final = 'such as {"models": ["a", {"name": "b", "parameters": {"skip_gate": true}}]}'


def read_index(body: Buffer) -> bool:
    """Whether only ready models are asked for."""
    root = parse(body) if body else {}
    ready = root.get("ready", False) if isinstance(root, dict) else False
    if not isinstance(ready, bool):
        raise invalid("Invalid value for 'ready': expected a boolean")
    return ready


def read_load(body: Buffer) -> dict[str, str | bytes]:
    """The load parameters: `config` as text, `file:<path>` as the bytes that the base64 text stands for."""
    return _load_parameters(_parameters(_root(body)))


def read_group(body: Buffer) -> dict[str, dict[str, str | bytes]]:
    """The models to load together: name -> load parameters. An entry is a name, or an object with its parameters."""
    models = _root(body).get("models")
    if not isinstance(models, list) or not models:
        raise invalid("expected 'models', a list of at least one model to load together", _GROUP_EXAMPLE)
    found: dict[str, dict[str, str | bytes]] = {}
    for entry in models:
        known = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(known, dict) or not isinstance(known.get("name"), str) or known.keys() - _GROUP_KEYS:
            raise invalid(
                "expected each entry of 'models' to be a name or an object with 'name' and 'parameters'", _GROUP_EXAMPLE
            )
        name = text(known["name"])
        if name in found:
            raise invalid(f"model '{name}' is twice in 'models'", "name each model once")
        found[name] = _load_parameters(_parameters(known))
    return found


def _load_parameters(given: dict[str, Any]) -> dict[str, str | bytes]:
    found: dict[str, str | bytes] = {}
    for key, value in given.items():
        if key in SWITCHES:
            found[key] = "true" if boolean(value) else "false"
            continue
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
    return boolean(_parameters(_root(body)).get("unload_dependents", False))


def _root(body: Buffer) -> dict[str, Any]:
    root = parse(body) if body else {}
    return root if isinstance(root, dict) else {}


def _parameters(root: dict[str, Any]) -> dict[str, Any]:
    parameters = root.get("parameters", {})
    if not isinstance(parameters, dict):
        raise internal("attempt to get members for non-object")
    return parameters
