"""From a backend's name to the backend; each is imported when the first model asks for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from conch.backend.api import Backend
from conch.types.error import invalid

#: Backend name -> module and class.
BACKENDS = {
    "identity": ("conch.backend.identity", "IdentityBackend"),
    "onnxruntime": ("conch.backend.onnx", "OnnxBackend"),
    "python": ("conch.backend.python.backend", "PythonBackend"),
}

#: Packages that users have to add -> the extra of ours that brings them.
_EXTRAS = {"onnxruntime": "onnx"}


def find_backend(name: str) -> Backend:
    """The backend called `name`. Raises InferError where there is none, or its packages are not installed."""
    place = BACKENDS.get(name)
    if place is None:
        raise invalid(
            f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration.",
            f"backends of this server: {', '.join(sorted(BACKENDS))}",
        )
    module, attribute = place
    try:
        make = cast("Callable[[], Backend]", getattr(importlib.import_module(module), attribute))
        return make()
    except ImportError as error:
        extra = _EXTRAS.get(name)
        fix = f"pip install 'conch[{extra}]'" if extra else "reinstall conch"
        raise invalid(
            f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration.",
            f"{error}; {fix}",
        ) from error
