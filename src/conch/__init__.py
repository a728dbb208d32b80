"""Conch: an inference server in Python, a drop-in replacement for NVIDIA Triton Inference Server.

Files with functions to serve import this package: `@conch.model` and what belongs to it come from `conch.functions`.
So do programs that are to have a server inside: `conch.Server` is in `conch.library`. Both are loaded at the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conch.functions import *  # noqa: F403
    from conch.library import Answer as Answer
    from conch.library import Model as Model
    from conch.library import Server as Server
    from conch.types.error import InferError as InferError

__version__ = "0.1.0"

#: The Triton release whose behaviour Conch follows, reported as the server version over both protocols.
TRITON_VERSION = "2.73.0"


#: What `conch` offers to a program that is to have a server inside -> where it is.
_LIBRARY = {
    "Answer": "conch.library",
    "InferError": "conch.types.error",
    "Model": "conch.library",
    "Server": "conch.library",
}


def __getattr__(name: str) -> Any:
    """The names of the library and of `conch.functions`, loaded at the first use, so importing the package is cheap."""
    if name in _LIBRARY:
        from importlib import import_module  # noqa: PLC0415

        return getattr(import_module(_LIBRARY[name]), name)
    if not name.startswith("_"):
        from importlib import import_module  # noqa: PLC0415

        functions = import_module("conch.functions")
        if name in functions.__all__:
            return getattr(functions, name)
    raise AttributeError(f"module 'conch' has no attribute '{name}'")
