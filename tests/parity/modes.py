"""The servers that are asked: with which flags, with which models, and what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from parity import (
    backends,
    bls,
    cache,
    cases,
    classify,
    compression,
    control,
    ensembles,
    environments,
    generate,
    generated,
    grpc_more,
    instances,
    memory,
    models,
    namespaces,
    poll,
    protection,
    queues,
    ragged,
    reloads,
    sequences,
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
    #: The repositories below the folder that is written to; it is the repository itself where there are none.
    folders: tuple[str, ...] = ()
    #: Flags for both servers that name something in that folder, as `<root>`.
    placed: tuple[str, ...] = ()

    def place(self, root: Path) -> tuple[Path, tuple[str, ...]]:
        """The first repository, and the flags that name the others and what else lies there."""
        placed = tuple(flag.replace("<root>", str(root)) for flag in self.placed)
        if not self.folders:
            return root, placed
        others = tuple(f"--model-repository={root / folder}" for folder in self.folders[1:])
        return root / self.folders[0], others + placed


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
    "queues": Mode(queues.CASES, queues.FLAGS, write=queues.write),
    "sequences": Mode(sequences.CASES, write=sequences.write),
    "environments": Mode(tuple(environments.CASES), environments.FLAGS, environments.OURS, write=environments.write),
    "backends": Mode(
        tuple(backends.CASES),
        backends.FLAGS,
        backends.OURS,
        write=backends.write,
        folders=("models",),
        placed=backends.PLACED,
    ),
    "ensembles": Mode(ensembles.CASES, ensembles.FLAGS, write=ensembles.write),
    "instances": Mode(tuple(instances.CASES), instances.FLAGS, write=instances.write),
    "bls": Mode(tuple(bls.CASES), write=bls.write),
    "ragged": Mode(ragged.CASES, ragged.FLAGS, write=ragged.write),
    "cache": Mode(cache.CASES, cache.FLAGS, write=cache.write),
    "namespaces": Mode(tuple(namespaces.CASES), namespaces.FLAGS, write=namespaces.write, folders=namespaces.FOLDERS),
    "poll": Mode(tuple(poll.CASES), poll.FLAGS, write=poll.write, folders=poll.FOLDERS),
    "control": Mode(tuple(control.CASES), control.FLAGS, write=control.write),
    "reloads": Mode(reloads.CASES, reloads.FLAGS, write=reloads.write),
}
