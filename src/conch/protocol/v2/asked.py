"""An infer request's JSON as its parsers hand it on."""

from __future__ import annotations

from typing import Any, Final

import msgspec

#: Stands for a member that is absent, where its text is asked for.
NOTHING: Final = msgspec.Raw()


class AskedInput(msgspec.Struct, gc=False):
    """One member of `inputs`; its `data` is a `bulk.Packed` where simdjson read it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: msgspec.Raw = NOTHING
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class Asked(msgspec.Struct, gc=False):
    """What steers the request stays text until it is seen for the first time."""

    inputs: list[AskedInput]
    id: str = ""
    parameters: msgspec.Raw = NOTHING
    outputs: msgspec.Raw = NOTHING
