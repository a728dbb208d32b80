"""Reads forests with treelite, and turns its exceptions into our errors. Only `trial` imports treelite beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from conch.backend.forest import trial
from conch.types.error import Code, InferError, invalid

#: treelite begins its texts with a time and the place in its source: `[19:50:11] /path/file.cc:42: `.
_PLACE: Final = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+?:\d+: ")
#: Seconds after which a file is taken for one that its reader never finishes; more for large ones.
LONGEST: Final = 60.0
_BYTES_PER_SECOND: Final = 1 << 20


def treelite() -> Any:
    """The treelite package. Raises InferError where it is not installed."""
    try:
        import treelite  # noqa: PLC0415  a server without forests does not pay for it
        import treelite.gtil  # noqa: PLC0415
    except ImportError as error:
        raise invalid(
            "unable to find backend library for backend 'fil', try specifying runtime on the model configuration.",
            f"pip install 'conch[forest]' ({error})",
        ) from None
    return treelite


def read_forest(path: Path, kind: str, allow_unknown_field: bool) -> Any:
    """The `treelite.Model` in a file of format `kind`. Raises InferError for files that are not whole.

    A state of the file is tried once, in another process: what ends or stops the reader must not end the server.
    """
    library = treelite()
    try:
        found = path.stat()
        _try(path, kind, allow_unknown_field, (found.st_ino, found.st_size, found.st_mtime_ns))
        return trial.read(library, path, kind, allow_unknown_field)
    except Exception as error:  # noqa: BLE001  treelite raises bare exceptions, too
        raise unreadable(path, kind, error) from None


@lru_cache(maxsize=64)
def _try(path: Path, kind: str, allow_unknown_field: bool, state: tuple[int, ...]) -> None:
    """Raises ValueError unless another process could read the file, which is in that `state`."""
    seconds = LONGEST + state[1] / _BYTES_PER_SECOND
    # It finds what this process finds, however that found it.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([each for each in sys.path if each])}
    try:
        done = subprocess.run(  # noqa: S603  our own script
            [sys.executable, "-P", trial.__file__, str(path), kind, str(allow_unknown_field)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it has not come to an end in {seconds:.0f} s") from None
    if done.returncode == trial.REFUSED:
        raise ValueError(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        raise ValueError(f"the process that read it died of signal {-done.returncode}")
    if done.returncode:
        raise ValueError(f"the process that read it ended with status {done.returncode}")


def unreadable(path: Path, kind: str, error: Exception) -> InferError:
    text = _PLACE.sub("", str(error).partition("\nStack trace")[0].strip()) or type(error).__name__
    text = text.splitlines()[0]
    return InferError(
        Code.UNKNOWN,
        f"unable to read '{path}' as {kind}: {text}",
        "the file may be cut, or of another format: check parameter 'model_type'",
    )
