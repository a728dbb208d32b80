"""Keywords of `conch.Server` -> `ServerOptions`: each flag of the command line is one, `-` written as `_`. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from conch.config.flag_table import FLAGS
from conch.config.flags import FlagError, HelpAsked, parse
from conch.config.server import ServerOptions

#: Listeners exist when their port was asked for, or they were allowed in so many words.
_LISTENERS: Final = ("http", "grpc", "metrics")
_PROGRAM: Final = "conch.Server"


def server_options(repositories: Sequence[str | Path], keywords: Mapping[str, Any]) -> ServerOptions:
    """Raises TypeError for a keyword that is no flag, ValueError for a value that the flag does not take.

    Differences from the command line: no listener without its port; models can be loaded and unloaded by the program
    (mode `explicit`), and all are loaded at the start, unless something else is asked for.
    """
    given = {name.replace("_", "-"): value for name, value in keywords.items() if value is not None}
    for name in given:
        if name not in FLAGS:
            raise TypeError(_unknown(name))
    for each in _LISTENERS:
        given.setdefault(f"allow-{each}", f"{each}-port" in given)
    if "model-control-mode" not in given and not given.get("watch"):
        given["model-control-mode"] = "explicit"
        given.setdefault("load-model", ["*"])
    arguments = [argument for name, value in given.items() for argument in _arguments(name, value)]
    try:
        return parse([*arguments, "--", *map(str, repositories)], _PROGRAM)
    except FlagError as error:
        raise ValueError(str(error)) from None
    except HelpAsked:
        raise AssertionError from None


def _arguments(name: str, value: Any) -> Iterator[str]:
    flag = FLAGS[name]
    if flag.read is None:
        if value:
            yield f"--{name}"
    elif isinstance(value, Mapping):
        for each in _pairs(value):
            yield f"--{name}={each}"
    elif flag.repeated and isinstance(value, Sequence) and not isinstance(value, str):
        for each in value:
            yield f"--{name}={_text(each)}"
    else:
        yield f"--{name}={_text(value)}"


def _pairs(value: Mapping[str, Any]) -> Iterator[str]:
    """`{"onnxruntime": {"intra_op_thread_count": 2}}` and `{"default-max-batch-size": 8}`, as flags write them."""
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from (f"{name},{key}={_text(each)}" for key, each in inner.items())
        else:
            yield f"{name}={_text(inner)}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  only for a wrong keyword

    near = [each.replace("-", "_") for each in get_close_matches(name, FLAGS, n=3)]
    hint = f", did you mean {' or '.join(near)}?" if near else ": keywords are the flags of `conch serve --help`"
    return f"{_PROGRAM} has no keyword '{name.replace('-', '_')}'{hint}"
