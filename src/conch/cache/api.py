"""The door of the cache room: what an answer is when it is kept, and what a cache must offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, runtime_checkable

from conch.types.response import InferResponse
from conch.types.tensor import Tensor

#: What an entry and each of its tensors take besides names and contents: objects, their slots in containers, the key.
_ENTRY_BYTES: Final = 512
_TENSOR_BYTES: Final = 256


class Entry:
    """An answer to keep. Nobody changes it, and none of its bytes lie in memory that is somebody else's.

    `size` is what it takes, in bytes. `response` may be given to any number of requests.
    """

    __slots__ = ("response", "size")

    def __init__(self, response: InferResponse) -> None:
        size = _ENTRY_BYTES
        tensors = []
        for each in response.outputs:
            # Contents may be views: of a whole batch, or of a worker's memory that is lent for a moment.
            data = bytes(each.data)
            size += _TENSOR_BYTES + len(each.name) + len(data)
            tensors.append(Tensor(each.name, each.datatype, each.shape, data))
        for name, value in (response.parameters or {}).items():
            size += 2 * _TENSOR_BYTES + len(name) + (len(value) if isinstance(value, str) else 0)
        self.response = InferResponse(tuple(tensors), dict(response.parameters) if response.parameters else None)
        self.size = size


@runtime_checkable
class Near(Protocol):
    """A cache that answers at once. Any thread."""

    def lookup(self, key: bytes, /) -> Entry | None: ...

    def insert(self, key: bytes, entry: Entry, /) -> bool:
        """False: the entry is larger than the cache may ever hold."""

    def close(self) -> None: ...


@runtime_checkable
class Far(Protocol):
    """A cache that has to be asked. Any thread; nothing blocks, nothing raises: what goes wrong is a miss."""

    def ask(self, key: bytes, found: Callable[[Entry | None], object], /) -> bool:
        """Have `found` called on the loop's thread, later, exactly once. False: it will not be, this is a miss."""

    def insert(self, key: bytes, entry: Entry, /) -> bool:
        """As `Near.insert`. An entry may get lost."""

    def close(self) -> None:
        """Blocks for a moment, never on the loop's thread."""


Cache = Near | Far
