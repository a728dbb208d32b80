"""Asks the real Triton all cases and writes its answers to golden/: `python tests/parity/record.py --triton DIR`.

DIR is where `bench/triton/setup.sh` has installed Triton.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent)]

from parity.modes import MODES  # noqa: E402
from parity.replay import replay  # noqa: E402
from support.server import Server  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triton", type=Path, default=ROOT / ".cache" / "triton", help="where Triton is installed")
    parser.add_argument("--only", choices=tuple(MODES), help="record only one of the servers")
    options = parser.parse_args()
    command = (str(options.triton / "tritonserver"),)
    if not Path(command[0]).exists():
        parser.error(f"{command[0]} is not there: run `bench/triton/setup.sh {options.triton}` first, or pass --triton")
    for name, mode in MODES.items():
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as directory:
            repository = Path(directory).resolve()
            mode.write(repository, True)
            first, others = mode.place(repository)
            server = Server(first, *others, *mode.flags, command=command, timeout=120)
            try:
                server.ready_seconds()
                answers = replay(server, mode.cases, repository)
            finally:
                # Models whose load failed keep it from leaving in time, and with exit code 0.
                server.stop(check=False)
                server.close()
        print(f"{name}: {len(answers)} answers")
        golden = HERE / "golden" / f"{name}.json"
        golden.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
