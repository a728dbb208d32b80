"""The `conch` command and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch import TRITON_VERSION, __version__

USAGE = """\
usage: conch COMMAND [options]

  serve REPOSITORY [flags]   serve a Triton model repository over HTTP and gRPC (flags: conch serve --help)
  demo                       train a digit classifier, serve it, and classify handwriting it has never seen
  version                    print the version

`tritonserver` takes Triton's own command line."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    match command:
        case "serve":
            from conch.cli.serve import serve  # noqa: PLC0415

            return serve(arguments, prog="conch serve")
        case "demo":
            from conch.cli.demo import main as demo  # noqa: PLC0415

            return demo(arguments)
        case "version" | "--version":
            print(f"conch {__version__} (follows Triton {TRITON_VERSION})")
            return 0
        case "--help" | "-h" | "help":
            print(USAGE)
            return 0
    print(f"conch: unknown command '{command}', expected one of: serve, demo, version\n\n{USAGE}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
