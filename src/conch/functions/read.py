"""The helper process that reads a file's signatures, so that the server never runs a user's code: `-m ... FILE FD`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from conch.functions.declare import DeclarationError
from conch.functions.loading import load_declarations
from conch.functions.outline import outline
from conch.functions.signature import read_signature


def main(arguments: list[str]) -> None:
    """Write `{"models": [...]}` or `{"error": text}` to the descriptor; the file's own prints go to stderr."""
    path, descriptor = Path(arguments[0]), int(arguments[1])
    os.dup2(2, 1)
    answer: dict[str, Any]
    try:
        answer = {"models": [outline(each, read_signature(each)) for each in load_declarations(path)]}
    except DeclarationError as error:
        answer = {"error": str(error)}
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main(sys.argv[1:])
