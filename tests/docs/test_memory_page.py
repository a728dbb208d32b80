"""docs/memory.md shows a config: it must be one."""

from __future__ import annotations

import re
from pathlib import Path

from conch.config.memory import MemoryWish, memory_wish
from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.rules import validate

PAGE = Path(__file__).parent.parent.parent / "docs" / "memory.md"


def test_the_example_is_sound() -> None:
    """A reader who copies it gets what the page explains."""
    example = re.search(r"```\n(name.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    config = parse_text(example[1], "config.pbtxt")
    normalize(config)
    validate(config, check_io=False)
    assert memory_wish(config) == MemoryWish({"ram": 300 << 20}, idle_seconds=600.0, on_demand=True)
