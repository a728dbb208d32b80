"""`python -m conch`: the `conch` command where its script is not on the path."""

import sys

from conch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
