"""The servers that are asked: with which flags, with which models, and what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from parity import (
    cases,
    classify,
    compression,
    generate,
    generated,
    grpc_more,
    memory,
    models,
    protection,
    settings,
    streams,
)
from parity.cases import Case


@dataclass(frozen=True)
class Mode:
    """`flags` are for both servers, `ours` for Conch alone.

    `write` puts the models into a folder; its second argument says whether they are for the real Triton.
    """

    cases: tuple[Case, ...]
    flags: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    write: Callable[[Path, bool], None] = models.write_repository


MODES: Mapping[str, Mode] = {
    "none": Mode(
        cases.NONE
        + tuple(classify.CASES)
        + tuple(generate.CASES)
        + tuple(compression.CASES)
        + tuple(streams.CASES)
        + tuple(grpc_more.CASES)
        + tuple(generated.CASES)
        + tuple(settings.CASES)
    ),
    "explicit": Mode(cases.EXPLICIT, cases.EXPLICIT_FLAGS, write=partial(models.write_repository, broken=True)),
    "guarded": Mode(
        tuple(protection.CASES) + tuple(memory.CASES),
        flags=protection.FLAGS,
        # The recorded release allows it always.
        ours=("--allow-client-shm=true",),
        write=partial(models.write_repository, only=("seen", "counted", "text", "add_sub", "classes", "repeat")),
    ),
}
