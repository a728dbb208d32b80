"""What a config and the command line ask of DALI, read into one plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from conch.backend.python.environment import PATH
from conch.backend.python.settings import OWN
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import invalid

_THREADS: Final = "num_threads"
_SPLIT: Final = "split_along_outer_axis"
_PLUGINS: Final = "plugin_libs"
_RELEASE: Final = "release_after_unload"


@dataclass(frozen=True, slots=True)
class DaliPlan:
    #: Threads of one instance; None for its share of the CPUs.
    threads: int | None = None
    #: Outputs whose samples become one row for each entry of their first dimension.
    split: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    #: What was accepted and has no effect; logged at load.
    notes: tuple[str, ...] = ()


def plan_dali(config: ModelConfig, settings: Mapping[str, str]) -> DaliPlan:
    """`settings` are those of `--backend-config=dali,...`. Raises InferError for what cannot be meant."""
    values = {key: each.string_value for key, each in config.parameters.items()}
    text = values.get(_THREADS, "-1")
    if not text.removeprefix("-").isdecimal() or len(text) > 9:
        raise invalid(
            f"parameter '{_THREADS}' of model '{config.name}' is '{text}', expected a whole number",
            "leave it out for the instance's share of the CPUs",
        )
    split = tuple([name for name in values.get(_SPLIT, "").split(":") if name])
    known = [entry.name for entry in config.output]
    for name in split:
        if known and name not in known:
            raise invalid(
                f"parameter '{_SPLIT}' of model '{config.name}' names '{name}', which is no output of the model",
                f"the outputs are: {', '.join(known)}",
            )
    notes = []
    release = settings.get(_RELEASE)
    if release not in (None, "true", "false"):
        raise invalid(
            f"backend setting '{_RELEASE}' is '{release}', expected true or false",
            f"--backend-config=dali,{_RELEASE}=true",
        )
    if release == "false":
        notes.append(f"--backend-config=dali,{_RELEASE}=false has no effect: memory ends with a model's processes")
    notes += [
        f"model '{config.name}': parameter '{name}' is not one that the dali backend knows, it has no effect"
        for name in sorted(values.keys() - {_THREADS, _SPLIT, PATH})
        if not name.startswith("conch_")
    ]
    notes += [
        f"--backend-config=dali,{name}={settings[name]} has no effect, its settings are {_PLUGINS}, {_RELEASE}"
        for name in sorted(settings.keys() - {_PLUGINS, _RELEASE} - OWN)
    ]
    count = int(text)
    plugins = tuple([name for name in settings.get(_PLUGINS, "").split(":") if name])
    return DaliPlan(count if count > 0 else None, split, plugins, tuple(notes))
