"""Trace files as Triton writes them: one JSON array of activities, by a thread of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conch.observe.trace import Source, Trace
from conch.types.dtype import BYTES
from conch.types.tensor import Tensor, split_bytes

_log = logging.getLogger("conch")

#: Traces, and bytes of their tensors, that may wait for a slow disk; more are dropped and counted. What waits for a
#: file of every n traces takes no more bytes either: then the file comes sooner.
_BACKLOG = 10_000
_BACKLOG_BYTES = 1 << 28
#: About what a trace takes besides its tensors.
_TRACE_BYTES = 2048


class TraceFile:
    """Implements `trace.Recorder`. The file is a whole JSON document at any time that nobody is writing to it.

    With a log frequency of n, every n traces of a setting get a file of their own: `<path>.0`, `<path>.1`, ...
    """

    def __init__(self, path: str) -> None:
        self._path = path
        #: How long the file is as it was left; 0 before the first traces.
        self._length = 0
        self._index = 0
        self._broken = False
        self._jobs: deque[Trace | Source] = deque()
        self._bytes = 0
        self._dropped = 0
        self._ended = False
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None

    def put(self, trace: Trace) -> None:
        size = _size(trace)
        with self._changed:
            if len(self._jobs) >= _BACKLOG or (self._jobs and self._bytes + size > _BACKLOG_BYTES):
                self._dropped += 1
                trace.source.taken += 1
                return
            self._bytes += size
            self._add(trace)

    def retire(self, source: Source) -> None:
        with self._changed:
            # Without a writer there has been no trace, and nothing is held.
            if self._writer is not None:
                self._add(source)

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(10.0)

    def _add(self, job: Trace | Source) -> None:
        self._jobs.append(job)
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="conch-trace", daemon=True)
            self._writer.start()
        self._changed.notify_all()

    # ---- the writer's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._ended:
                    self._changed.wait()
                jobs = list(self._jobs)
                self._jobs.clear()
                self._bytes = 0
                dropped, self._dropped = self._dropped, 0
                if not jobs:
                    return
            if dropped:
                _log.warning("%d traces were dropped: '%s' could not be written in time", dropped, self._path)
            self._take(jobs)

    def _take(self, jobs: list[Trace | Source]) -> None:
        plain: list[Trace] = []
        for job in jobs:
            if isinstance(job, Source):
                self._save(job)
                continue
            source = job.source
            source.taken += 1
            frequency = source.setting.log_frequency
            if frequency == 0:
                plain.append(job)
                continue
            source.held.append(job)
            source.held_bytes += _TRACE_BYTES + _size(job)
            # A late trace of a setting that is no longer in force waits for nothing either.
            full = len(source.held) >= frequency or source.held_bytes > _BACKLOG_BYTES
            if full or (source.left == 0 and source.taken >= source.created):
                self._save(source)
        if plain:
            self._append(plain)

    def _save(self, source: Source) -> None:
        traces, source.held, source.held_bytes = source.held, [], 0
        if not traces:
            return
        path = Path(f"{self._path}.{self._index}")
        self._index += 1
        try:
            path.write_bytes(b"[" + _lines(traces) + b"]")
        except OSError as error:
            self._complain(path, error)
        else:
            self._broken = False

    def _append(self, traces: list[Trace]) -> None:
        path = Path(self._path)
        text = _lines(traces)
        try:
            # Somebody may have moved or emptied the file meanwhile: then another one begins.
            goes_on = self._length > 0 and path.is_file() and path.stat().st_size >= self._length
            if not goes_on:
                self._length = 0
                path.write_bytes(b"[" + text + b"]")
                self._length = len(text) + 2
            else:
                self._length = _extend(path, self._length, b"," + text + b"]")
        except OSError as error:
            self._complain(path, error)
        else:
            self._broken = False

    def _complain(self, path: Path, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            _log.error("traces are lost: '%s' cannot be written: %s", path, error.strerror)


def _extend(path: Path, length: int, text: bytes) -> int:
    """Write `text` over the last byte of a file of this length; its new length. After an error it is as it was."""
    with path.open("r+b", buffering=0) as file:
        last = length - 1
        try:
            file.truncate(length)
            file.seek(last)
            left = memoryview(text)
            while left:
                left = left[file.write(left) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(last)
                file.seek(last)
                file.write(b"]")
            raise
    return last + len(text)


def _lines(traces: list[Trace]) -> bytes:
    # Names that are no Unicode (half of a surrogate pair) are shown as such.
    return ",".join([json.dumps(each, ensure_ascii=False, separators=(",", ":")) for trace in traces
                     for each in activities(trace)]).encode("utf-8", "backslashreplace")  # fmt: skip


def activities(trace: Trace) -> Iterator[dict[str, Any]]:
    """The entries of one trace, the header first and then in the order of time."""
    header: dict[str, Any] = {"id": trace.id, "model_name": trace.model, "model_version": trace.version}
    if trace.request_id:
        header["request_id"] = trace.request_id
    if trace.parent_id:
        header["parent_id"] = trace.parent_id
    yield header
    for name, ns in sorted(trace.times, key=lambda each: each[1]):
        yield {"id": trace.id, "timestamps": [{"name": name, "ns": ns}]}
    for activity, tensor in trace.tensors:
        yield {
            "id": trace.id,
            "activity": activity,
            "tensor": {
                "name": tensor.name,
                "data": _text(tensor),
                "shape": ",".join(map(str, tensor.shape)),
                "dtype": tensor.datatype.name,
            },
        }


def _text(tensor: Tensor) -> str:
    """Empty for bytes that are not the elements they should be: a backend may have answered anything."""
    try:
        return tensor_text(tensor)
    except ValueError:
        return ""


def tensor_text(tensor: Tensor) -> str:
    """The elements with commas between them: numbers as C++ prints them, strings in quotes. Raises ValueError."""
    if tensor.datatype is BYTES:
        return ",".join([f'"{each.decode("utf-8", "replace")}"' for each in split_bytes(tensor.data)])
    if tensor.datatype.name == "BF16":
        array = (np.frombuffer(tensor.data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(tensor.data, tensor.datatype.numpy)
    if array.dtype.kind == "f":
        return ",".join(["%g" % each for each in array.tolist()])  # noqa: UP031  as C++ prints them
    return ",".join([str(int(each)) for each in array.tolist()])


def _size(trace: Trace) -> int:
    return sum([len(tensor.data) for _, tensor in trace.tensors])
