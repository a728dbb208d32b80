"""JSON that an operator wrote into a parameter or a file, read strictly: nothing in it may be said twice. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conch.config.shown import cut
from conch.types.error import InferError

#: From what is wrong, to follow the name of the place, and how to mend it to the error.
Refuse = Callable[[str, str], InferError]


def read_json(text: str | bytes, refuse: Refuse, hint: str) -> Any:
    """Raises what `refuse` makes; `hint` is for text that is no JSON."""
    try:
        return json.loads(text, object_pairs_hook=_members, parse_constant=_no_number)
    except _TwiceError as twice:
        raise refuse(f"says '{cut(str(twice))}' twice", "say each name once") from None
    except RecursionError:
        raise refuse("is no JSON: it is nested too deeply", hint) from None
    except ValueError as error:
        raise refuse(f"is no JSON: {cut(str(error))}", hint) from None


class _TwiceError(ValueError):
    """It is left open what is meant."""


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in names if names.count(name) > 1))
    return members


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")
