"""What endpoints other than infer answer over HTTP."""

from __future__ import annotations

import json

from conch.protocol.v2 import answers
from conch.types.model import IndexEntry


def test_a_reason_that_is_no_text_does_not_hide_the_index() -> None:
    """A reason may name a file whose name is not UTF-8: it is shown as far as it can be."""
    found = answers.index([IndexEntry("a", "1", "UNAVAILABLE", "no \udcff.onnx"), IndexEntry("b", "1", "READY")])
    assert json.loads(found) == [
        {"name": "a", "version": "1", "state": "UNAVAILABLE", "reason": "no ?.onnx"},
        {"name": "b", "version": "1", "state": "READY"},
    ]
