"""`conch serve` and `tritonserver`: read the flags, then serve until told to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch.config.flags import FlagError, HelpAsked, deprecations, parse, usage


def serve(argv: Sequence[str], prog: str) -> int:
    """Returns the exit code: 0 after an orderly stop, 1 for flags or a start that failed."""
    try:
        options = parse(argv, prog)
    except HelpAsked as asked:
        print(asked.text)
        return 0
    except FlagError as error:
        # Triton shows its usage before what is wrong; that is a page of flags, so `conch serve` only says where it is.
        if prog == "tritonserver":
            print(usage(prog), file=sys.stderr)
            print(error, file=sys.stderr)
        else:
            print(f"{error}\nSee {prog} --help", file=sys.stderr)
        return 1
    for warning in deprecations(argv, prog):
        print(warning, file=sys.stderr)
    # Not at the top: `--help` and wrong flags answer without loading the server.
    from conch.app import run  # noqa: PLC0415

    return run(options)
