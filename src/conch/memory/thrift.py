"""Keeps the C library from holding on to what loads and closed models have freed, at no cost to requests."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final

#: Sets an option of the C library's allocator.
SetOption = Callable[[int, int], object]

#: Options of `mallopt`: pieces from this size on are mapped one by one; this much free memory at an end is kept.
TRIM_THRESHOLD: Final = -1
MMAP_THRESHOLD: Final = -3

_MIB: Final = 1 << 20
#: While a model is loaded or closed. Weights are mapped, and go when they are freed, whoever frees them.
_THRIFTY: Final = {MMAP_THRESHOLD: _MIB, TRIM_THRESHOLD: _MIB}
#: For requests: what the library arrives at by itself once it has seen large tensors, which are not mapped and
#: faulted in anew each time. A threshold that was set once does not move by itself any more.
_GENEROUS: Final = {MMAP_THRESHOLD: 32 * _MIB, TRIM_THRESHOLD: 64 * _MIB}
#: By these an operator has chosen already.
_CHOICES: Final = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
_TUNABLES: Final = ("glibc.malloc.mmap_threshold", "glibc.malloc.trim_threshold", "glibc.malloc.mmap_max")


class Thrift:
    """A context in which what is freed goes back to the system. Any thread, any number of them at once.

    Each thread takes its memory from one of several arenas, and when weights are freed, an arena keeps its free end: up
    to twice the largest piece ever freed, 64 MiB at most, which `malloc_trim` does not touch. Loads and closes are done
    by many threads, so a reloaded model of 8 MiB left 8 MiB in one arena after another (measured: 2.7 MB a minute at
    40 reloads a minute, towards some hundred MB; with this 0).
    """

    def __init__(self, set_option: SetOption | None) -> None:
        self._set_option = set_option
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._choose(_THRIFTY)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._choose(_GENEROUS)

    def _choose(self, values: Mapping[int, int]) -> None:
        if self._set_option is not None:
            for option, value in values.items():
                self._set_option(option, value)


def allocator(environment: Mapping[str, str]) -> SetOption | None:
    """`mallopt`; None where the C library is not glibc, or an operator has chosen how it is to behave."""
    tunables = environment.get("GLIBC_TUNABLES", "")
    if any(name in environment for name in _CHOICES) or any(name in tunables for name in _TUNABLES):
        return None
    try:
        found: SetOption = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return None
    return found


#: The allocator is the process's, and so is this.
THRIFT: Final = Thrift(allocator(os.environ))
