"""What an inference callable gets for each request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np


class Request(MutableMapping[str, np.ndarray[Any, Any]]):
    """A request's inputs by name, with the batch dimension if the model batches; `parameters` are its parameters."""

    __slots__ = ("data", "parameters")

    def __init__(self, data: Mapping[str, np.ndarray[Any, Any]], parameters: Mapping[str, Any] | None = None) -> None:
        self.data = dict(data)
        self.parameters = dict(parameters or {})

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self.data[name]

    def __setitem__(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self.data[name] = value

    def __delitem__(self, name: str) -> None:
        del self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)
