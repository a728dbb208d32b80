"""`pb_utils.load_model` and its siblings: a model has the server's other models loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conch.backend.python.calls import runtime
from conch.backend.python.errors import TritonModelException
from conch.backend.python.tensor import text


def load_model(model_name: str, config: str = "", files: Mapping[str, bytes] | None = None) -> None:
    """Blocks until the model serves. `config` is JSON, `files` are contents by `file:<path>`."""
    model_name, config = _texts("load_model", model_name=model_name, config=config)
    if files is not None and not isinstance(files, dict):
        raise TritonModelException(
            f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents"
        )
    contents = {}
    for path, content in (files or {}).items():
        if not isinstance(path, str) or not isinstance(content, bytes):
            raise TypeError(f"load_model() takes files of type dict[str, bytes], found {path!r}: {type(content)}")
        contents[path] = content
    sizes = [[path, len(content)] for path, content in contents.items()]
    _ask("load", "load model", {"name": model_name, "config": config, "files": sizes}, list(contents.values()))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    (model_name,) = _texts("unload_model", model_name=model_name)
    _ask("unload", "unload model", {"name": model_name, "dependents": bool(unload_dependents)})


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    model_name, model_version = _texts("is_model_ready", model_name=model_name, model_version=model_version)
    if model_version and not model_version.strip().lstrip("-").isdigit():
        raise TritonModelException(
            "Failed to check model readiness: "
            + runtime.refusal(
                f"failed to get model version from specified version string '{model_version}' (details: stol), version "
                "should be an integral value > 0"
            )
        )
    if model_version.strip().startswith("-"):
        raise TritonModelException(
            "Failed to check model readiness: "
            + runtime.refusal(
                f"failed to get model version from specified version string '{model_version}', version should be an "
                "integral value > 0"
            )
        )
    return bool(_ask("ready", "check model readiness", {"name": model_name, "version": model_version.strip()}))


def _ask(ask: str, what: str, question: dict[str, Any], contents: list[bytes] | None = None) -> Any:
    asks = runtime.asks
    if asks is None:
        raise TritonModelException(f"Failed to {what}: no model is being served here.")
    try:
        return asks.ask({"ask": ask, **question}, contents or ())
    except TritonModelException as error:
        raise TritonModelException(f"Failed to {what}: {runtime.refusal(str(error))}") from None


def _texts(function: str, **values: Any) -> list[str]:
    texts = []
    for name, value in values.items():
        shown = text(value)
        if not isinstance(shown, str):
            raise TypeError(f"{function}() takes {name} of type str, found {value!r}")
        texts.append(shown)
    return texts
