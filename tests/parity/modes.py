"""The servers that are asked: with which flags, with which models, and what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from parity import cases, classify, compression, generate, generated, grpc_more, memory, protection, settings, streams
from parity.cases import Case


@dataclass(frozen=True)
class Mode:
    """`flags` are for both servers, `ours` for Conch alone. `models`: which of the repository, all when None."""

    cases: tuple[Case, ...]
    flags: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    broken: bool = False


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
    "explicit": Mode(cases.EXPLICIT, cases.EXPLICIT_FLAGS, broken=True),
    "guarded": Mode(
        tuple(protection.CASES) + tuple(memory.CASES),
        flags=protection.FLAGS,
        # The recorded release allows it always.
        ours=("--allow-client-shm=true",),
        models=("seen", "counted", "text", "add_sub", "classes", "repeat"),
    ),
}
