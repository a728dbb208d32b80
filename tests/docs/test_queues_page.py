"""docs/queues.md shows a config: it must be one."""

from __future__ import annotations

import re
from pathlib import Path

from conch.config.fairness import Fairness, fairness
from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.rules import validate

PAGE = Path(__file__).parent.parent.parent / "docs" / "queues.md"


def test_the_example_is_sound() -> None:
    """A reader who copies it gets the shares that the page explains."""
    example = re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    config = parse_text(example[1], "config.pbtxt")
    normalize(config)
    validate(config, check_io=False)
    assert fairness(config) == Fairness("x-tenant", {"gold": 4.0, "silver": 2.0}, 1.0)
