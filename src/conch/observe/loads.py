"""What became of the loads of models: counters and times for the metrics page."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from conch.observe.metrics import join, plain

#: More names than this are not kept: clients may ask for loads of names that are nowhere.
_MOST: Final = 4096
_RESULTS: Final = ("success", "failure", "rejected")


class Loads:
    """Any thread. `clock` is the wall clock, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: By model and result.
        self.counts: Counter[tuple[str, str]] = Counter()
        #: By model: whether its last load went well, and when it ended.
        self.last: dict[str, tuple[bool, float]] = {}

    def succeeded(self, model: str) -> None:
        self._note(model, "success")

    def failed(self, model: str, *, rejected: bool = False) -> None:
        """`rejected`: the new version was kept out by its gate."""
        self._note(model, "rejected" if rejected else "failure")

    def _note(self, model: str, result: str) -> None:
        with self._lock:
            if model not in self.last and len(self.last) >= _MOST and not self._make_room():
                return
            self.counts[model, result] += 1
            self.last[model] = (result == "success", self._clock())

    def _make_room(self) -> bool:
        """Forget the first of the names whose loads have all failed: it may be nowhere, others are not."""
        hopeless = next((model for model in self.last if not self.counts[model, "success"]), None)
        if hopeless is None:
            return False
        del self.last[hopeless]
        for result in _RESULTS:
            del self.counts[hopeless, result]
        return True

    def rows(self) -> list[tuple[str, dict[str, int], bool, float]]:
        """Of each model: its name, how many loads had each result, whether the last went well, when that was."""
        with self._lock:
            return [
                (model, {result: self.counts[model, result] for result in _RESULTS}, well, at)
                for model, (well, at) in sorted(self.last.items())
            ]


def render(loads: Loads) -> bytes:
    """The part of the metrics page that is about loads; empty where nothing was loaded."""
    rows = loads.rows()
    if not rows:
        return b""
    lines = [_head("conch_model_load_total", "counter", "Number of loads of a model by result")]
    for model, counts, _, _ in rows:
        for result, count in counts.items():
            lines.append(f"conch_model_load_total{join({'model': model, 'result': result})} {count}\n")
    lines.append(_head("conch_model_last_load_success", "gauge", "Whether the last load of a model went well"))
    lines += [f"conch_model_last_load_success{join({'model': model})} {int(well)}\n" for model, _, well, _ in rows]
    lines.append(
        _head("conch_model_last_load_timestamp_seconds", "gauge", "When the last load of a model ended, Unix time")
    )
    lines += [
        f"conch_model_last_load_timestamp_seconds{join({'model': model})} {plain(round(at, 3))}\n"
        for model, _, _, at in rows
    ]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
