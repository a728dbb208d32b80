"""`conch serve` and `tritonserver`: read the flags, then serve until told to stop."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch.cli import targets
from conch.config.flags import FlagError, HelpAsked, arguments, deprecations, parse, usage

CONCH = "conch serve"


def serve(argv: Sequence[str], prog: str) -> int:
    """Returns the exit code: 0 after an orderly stop, 1 for flags, targets or a start that failed."""
    own, rest = targets.take(argv) if prog == CONCH else (targets.Wishes(), list(argv))
    try:
        options = parse(rest, prog)
        named = arguments(rest, prog) if prog == CONCH else []
    except HelpAsked as asked:
        print(targets.HELP + asked.text if prog == CONCH else asked.text)
        return 0
    except FlagError as error:
        # Triton shows its usage before what is wrong; that is a page of flags, so `conch serve` only says where it is.
        if prog == "tritonserver":
            print(usage(prog), file=sys.stderr)
            print(error, file=sys.stderr)
        else:
            print(f"{error}\nSee {prog} --help", file=sys.stderr)
        return 1
    for warning in deprecations(rest, prog):
        print(warning, file=sys.stderr)
    if prog == CONCH:
        return targets.serve(options, named, own)
    # Not at the top: `--help` and wrong flags answer without loading the server.
    from conch.process import run  # noqa: PLC0415

    return run(options)
