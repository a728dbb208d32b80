"""From the responses of a batch to the parts of one message; batches of equal responses take a short way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from conch.backend.python.channel import INLINE, UNIFORM
from conch.backend.python.request import Batch
from conch.backend.python.response import InferenceResponse, describe
from conch.backend.python.tensor import BYTES, encode

#: So many layouts are known by number; the oldest is forgotten for a new one.
LAYOUTS = 256


class Layout:
    """The outputs that every response of a batch has: what is expected of each response, and which of it is sent."""

    __slots__ = ("columns", "has_bytes", "number", "size", "tensors")

    def __init__(
        self, number: int, tensors: Sequence[tuple[str, int, tuple[int, ...]]], wanted: frozenset[str]
    ) -> None:
        self.number = number
        self.tensors = tensors
        #: Positions of the tensors that were asked for.
        self.columns = [index for index, tensor in enumerate(tensors) if tensor[0] in wanted]
        self.has_bytes = any(tensors[index][1] == BYTES for index in self.columns)
        #: Bytes of one response, set by the first batch.
        self.size = -1


class Reply:
    """The contents of a DONE message. `parts` are bytes or arrays, `size` bytes in all; `meta` is JSON or empty."""

    __slots__ = ("flags", "meta", "number", "parts", "size")

    def __init__(self, flags: int, number: int, meta: dict[str, Any], parts: Sequence[Any], size: int) -> None:
        self.flags = flags
        self.number = number
        self.meta = json.dumps(meta).encode() if meta else b""
        self.parts = parts
        self.size = size


def refusal(text: str) -> Reply:
    """The whole batch failed."""
    return Reply(0, 0, {"error": text}, (), 0)


class Answers:
    """Remembers the layouts that the server has been told."""

    def __init__(self) -> None:
        self._layouts: dict[Any, Layout] = {}

    def gather(self, responses: list[InferenceResponse], batch: Batch) -> Reply:
        """Raises TypeError-like texts as ValueError where `responses` is not what `execute` may return."""
        if batch.form is not None and batch.turns is None and batch.released is None:
            reply = self._uniform(responses, batch.form.wanted)
            if reply is not None:
                return reply
        return _entries(responses, batch)

    def _uniform(self, responses: list[InferenceResponse], wanted: frozenset[str]) -> Reply | None:
        first = responses[0]
        if type(first) is not InferenceResponse:
            return None
        meta = {}
        key = (wanted, *[(t._name, t._kind, None if t._array is None else t._array.shape) for t in first._tensors])
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._tell(key, wanted)
            shown = [[name, kind, shape] for name, kind, shape in (layout.tensors[i] for i in layout.columns)]
            meta["layout"] = shown
        columns = _collect(layout.tensors, responses)
        if columns is None:
            self._forget(key, meta)
            return None
        if layout.has_bytes:
            try:
                return self._with_bytes(layout, columns, meta)
            except BaseException:
                # An element has no bytes.
                self._forget(key, meta)
                raise
        if layout.size < 0:
            layout.size = sum([columns[index][0].nbytes for index in layout.columns])
        size = layout.size * len(responses)
        if size <= INLINE:
            parts = [array.tobytes() for index in layout.columns for array in columns[index]]
        else:
            parts = [array for index in layout.columns for array in columns[index]]
        return Reply(UNIFORM, layout.number, meta, parts, size)

    def _with_bytes(self, layout: Layout, columns: list[list[Any]], meta: dict[str, Any]) -> Reply:
        parts: list[Any] = []
        lengths = []
        size = 0
        for index in layout.columns:
            if layout.tensors[index][1] != BYTES:
                parts += columns[index]
                size += sum([array.nbytes for array in columns[index]])
                continue
            for array in columns[index]:
                raw = encode(array.ravel().tolist())
                parts.append(raw)
                lengths.append(len(raw))
                size += len(raw)
        meta["lengths"] = lengths
        return Reply(UNIFORM, layout.number, meta, parts, size)

    def _tell(self, key: Any, wanted: frozenset[str]) -> Layout:
        layouts = self._layouts
        number = len(layouts)
        if number == LAYOUTS:
            number = layouts.pop(next(iter(layouts))).number
        layout = layouts[key] = Layout(number, key[1:], wanted)
        return layout

    def _forget(self, key: Any, meta: dict[str, Any]) -> None:
        """The batch turned out not to be uniform; a layout that was new with it has not been told."""
        if meta:
            # Numbers have no gaps: a layout that nothing matches keeps this one.
            layout = self._layouts.pop(key)
            self._layouts[object()] = layout


def _collect(
    expected: Sequence[tuple[str, int, tuple[int, ...]]], responses: list[InferenceResponse]
) -> list[list[Any]] | None:
    """The arrays of each output, if all responses are of this layout and nothing more."""
    count = len(expected)
    columns: list[list[Any]] = [[] for _ in expected]
    if count == 1:
        (name, kind, shape), add = expected[0], columns[0].append
        for response in responses:
            if type(response) is not InferenceResponse or not response._plain or len(response._tensors) != 1:
                return None
            tensor = response._tensors[0]
            array = tensor._array
            if array is None or tensor._kind != kind or array.shape != shape or tensor._name != name:
                return None
            add(array)
        return columns
    for response in responses:
        if type(response) is not InferenceResponse or not response._plain or len(response._tensors) != count:
            return None
        for tensor, (name, kind, shape), column in zip(response._tensors, expected, columns):  # noqa: B905
            array = tensor._array
            if array is None or tensor._kind != kind or array.shape != shape or tensor._name != name:
                return None
            column.append(array)
    return columns


def _entries(responses: list[InferenceResponse], batch: Batch) -> Reply:
    entries: list[dict[str, Any] | None] = []
    parts: list[Any] = []
    turns = batch.turns or {}
    for index, response in enumerate(responses):
        turn = turns.get(index)
        if turn is not None and turn.sent:
            entries.append(None)
        elif batch.released is not None and index in batch.released:
            entries.append({"again": True})
        elif response is None:
            if turn is None:
                text = (
                    "The model returned None for this request and never asked for its response sender: "
                    "nothing is left to answer it."
                )
                entries.append({"error": [1, text]})
            else:
                turn.awaited = True
                entries.append(None)
        else:
            entry, chunks = describe(response, (batch.form or batch.forms[index]).wanted)
            if turn is not None:
                turn.sent = True
            entries.append(entry)
            parts += chunks
    return Reply(0, 0, {"entries": entries}, parts, sum([len(part) for part in parts]))


def check(result: Any, count: int) -> str:
    """What is wrong with the return value of `execute` for `count` requests, in Triton's words; empty if nothing is."""
    if not isinstance(result, list):
        return f"Expected a list in the execute return, found type '{type(result)}'."
    if len(result) != count:
        return (
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{count}, and InferenceResponse(s) size is:{len(result)}\n"
        )
    for response in result:
        if not isinstance(response, InferenceResponse) and response is not None:
            return (
                "Expected an 'InferenceResponse' object in the execute function return list, found type "
                f"'{type(response)}'."
            )
    return ""


def check_released(result: list[Any], released: Iterable[int]) -> str:
    """A request that is to be run again has no response yet."""
    for index in released:
        if result[index] is not None:
            return (
                "Expected a None object in the execute function return list for reschduled request, found type "
                f"'{type(result[index])}'."
            )
    return ""
