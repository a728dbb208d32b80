"""How a worker begins in whatever Python runs it, and what is said where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from conch.types.error import InferError, internal

#: What a worker writes to its stderr when it cannot run in an environment.
NO_NUMPY: Final = "conch: this environment has no numpy"
OLD_PYTHON: Final = "conch: this Python is too old: "
# The worker's interpreter may know nothing of this package and may have no more than numpy. So the package is given
# to it by its folder alone, without whatever else is installed beside it. The server's working directory, which `-c`
# puts first, is nobody's: a model.py or a numpy.py that happens to lie there would be taken for the real one.
BOOT: Final = f"""
import sys, types
if '' in sys.path: sys.path.remove('')
if sys.version_info < (3, 9): sys.exit({OLD_PYTHON!r} + sys.version.split()[0])
try: import numpy
except ImportError as error:
    if error.name == 'numpy': sys.exit({NO_NUMPY!r})
    raise
package = types.ModuleType('conch')
package.__path__ = [sys.argv[1]]
sys.modules['conch'] = package
from conch.backend.python.worker import main
main(sys.argv[3:])
"""


def diagnosis(model: str, python: str, lines: Sequence[str]) -> InferError | None:
    """Why a worker ended before it could listen, where its environment is to blame."""
    for line in lines:
        if line.startswith(NO_NUMPY):
            return internal(
                f"the Python environment of model '{model}' has no numpy, which every Python model needs ('{python}')",
                f"install it: {python} -m pip install numpy",
            )
        if line.startswith(OLD_PYTHON):
            return internal(
                f"the Python environment of model '{model}' is Python {line.removeprefix(OLD_PYTHON)}, expected 3.9 or "
                f"newer ('{python}')"
            )
    return None
