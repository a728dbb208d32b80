"""docs/reloads.md shows a config and names fields: they must be what the server takes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from conch.config.normalize import normalize
from conch.config.pbtxt import parse_text
from conch.config.rules import validate
from conch.config.swap_gate import SwapGate, swap_gate
from conch.types.difference import Tolerance

PAGE = (Path(__file__).parent.parent.parent / "docs" / "reloads.md").read_text()


def test_the_example_is_sound() -> None:
    """A reader who copies it gets the gate that the page explains."""
    example = re.search(r"```\n(name:.*?)```", PAGE, re.DOTALL)
    assert example is not None
    config = parse_text(example[1], "config.pbtxt")
    normalize(config)
    validate(config, check_io=False)
    assert swap_gate(config) == SwapGate(requests=64, tolerance=Tolerance(1e-3, 1e-5), latency_factor=1.5)


def test_every_field_is_explained() -> None:
    """The table has each field with its usual value."""
    usual = SwapGate()
    for field in dataclasses.fields(SwapGate):
        names = ("relative_tolerance", "absolute_tolerance") if field.name == "tolerance" else (field.name,)
        assert all(f"`{name}`" in PAGE for name in names)
    for name in ("requests", "max_bytes", "max_mismatches"):
        assert re.search(rf"`{name}` \|.*\| {getattr(usual, name)} \|", PAGE)
    assert re.search(rf"`seconds` \|.*\| {usual.seconds:g} \|", PAGE)
