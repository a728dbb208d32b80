"""The `conch` command and its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from conch import TRITON_VERSION, __version__

USAGE = """\
usage: conch COMMAND [options]

  serve TARGET [flags]       serve a model repository, a model file or a file of functions over HTTP and gRPC
                             (what a TARGET can be, and all flags: conch serve --help)
  import SOURCE [--into DIR] make models of a repository out of TorchServe's, MLServer's and TensorFlow Serving's
  export KIND SOURCE         make a model of a repository out of one of PyTorch, scikit-learn or Transformers
  check REPOSITORY           find what would keep models from loading, and mend it (conch check --help)
  demo                       train a digit classifier, serve it, and classify handwriting it has never seen
  version                    print the version

`tritonserver` takes Triton's own command line."""


def main(argv: Sequence[str] | None = None) -> int:  # noqa: PLR0911  one for each command
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    match command:
        case "serve":
            from conch.cli.serve import serve  # noqa: PLC0415

            return serve(arguments, prog="conch serve")
        case "import":
            from conch.cli.importing import main as adopt  # noqa: PLC0415

            return adopt(arguments)
        case "export":
            from conch.cli.export import main as export  # noqa: PLC0415

            return export(arguments)
        case "check":
            from conch.cli.check import main as check  # noqa: PLC0415

            return check(arguments)
        case "demo":
            from conch.cli.demo import main as demo  # noqa: PLC0415

            return demo(arguments)
        case "version" | "--version":
            print(f"conch {__version__} (follows Triton {TRITON_VERSION})")
            return 0
        case "--help" | "-h" | "help":
            print(USAGE)
            return 0
    print(
        f"conch: unknown command '{command}', expected one of: serve, import, export, check, demo, version\n\n{USAGE}",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
