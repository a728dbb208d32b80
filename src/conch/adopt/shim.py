"""Makes packages that are not installed importable, with what the models of other servers import from them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def offer(modules: Mapping[str, Mapping[str, Any]]) -> None:
    """Modules by name, packages before what is in them; nothing happens where the first one is installed."""
    package = next(iter(modules))
    if package in sys.modules or importlib.util.find_spec(package) is not None:
        return
    for name, contents in modules.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(contents)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
