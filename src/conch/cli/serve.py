"""`conch serve` and `tritonserver`: read the flags, then serve until told to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch.config.flags import FlagError, HelpAsked, parse


def serve(argv: Sequence[str], prog: str) -> int:
    """Returns the exit code: 0 after an orderly stop, 1 for flags or a start that failed."""
    try:
        options = parse(argv, prog)
    except HelpAsked as asked:
        print(asked.text)
        return 0
    except FlagError as error:
        print(error, file=sys.stderr)
        return 1
    # Not at the top: `--help` and wrong flags answer without loading the server.
    from conch.app import run  # noqa: PLC0415

    return run(options)
