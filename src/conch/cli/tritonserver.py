"""The `tritonserver` command: Triton's own flags, defaults and refusals."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch.cli.serve import serve


def main(argv: Sequence[str] | None = None) -> int:
    return serve(sys.argv[1:] if argv is None else argv, prog="tritonserver")


if __name__ == "__main__":
    sys.exit(main())
