"""What computes a forest: the parameter `conch_forest_engine` of a model's config. Pure."""

from __future__ import annotations

from typing import Final

PARAMETER: Final = "conch_forest_engine"
#: Backends that ask for it.
BACKENDS: Final = ("fil",)
