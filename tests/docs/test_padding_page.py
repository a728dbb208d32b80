"""docs/padding.md shows a config: it must be one."""

from __future__ import annotations

import re
from pathlib import Path

from conch.config.normalize import normalize
from conch.config.padding import padding_of
from conch.config.pbtxt import parse_text
from conch.config.rules import validate

PAGE = Path(__file__).parent.parent.parent / "docs" / "padding.md"


def test_the_example_is_sound() -> None:
    """A reader who copies it gets a model that loads, with everything that the page explains."""
    example = re.search(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example is not None
    config = parse_text(example[1], "config.pbtxt")
    normalize(config)
    validate(config, check_io=True)
    padding = padding_of(config)
    assert padding is not None
    assert (len(padding.inputs), len(padding.masks), padding.max_waste) == (1, 1, 0.2)
