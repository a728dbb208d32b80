#!/bin/sh
# Runs every test marked `gpu` where there is an NVIDIA GPU: test-gpu.sh VENV, or test-gpu.sh PYTHON with any interpreter
# that has the project and its tests' packages, such as one with a PyTorch of its own. Where there is no GPU it says why
# and leaves with 0; with 1 where there is one that cannot be used. FRAMEWORKS=install first installs the frameworks'
# builds for GPUs into the VENV.
set -eu

python=$1
[ ! -d "$1" ] || python=$1/bin/python
command -v "$python" >/dev/null || {
  echo "test-gpu: '$1' is neither a virtual environment nor an interpreter" >&2
  exit 1
}
cd "$(dirname "$0")/.."
# An interpreter that has not installed the project finds it here.
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"

# 3: there is no GPU; anything else is a fault.
"$python" - <<'END' || { left=$?; [ "$left" -eq 3 ] && exit 0; exit "$left"; }
import sys

from conch.config.gpus import Absent, read_gpus, visible_devices

try:
    gpus = read_gpus(visible=visible_devices())
except Absent as absent:
    print(f"test-gpu: nothing was run: {absent}")
    sys.exit(1 if absent.broken else 3)
for gpu in gpus:
    print(f"GPU {gpu.device}: {gpu.name}, compute capability {gpu.capability}, {gpu.memory / 2**30:.1f} GiB, {gpu.uuid}")
END

if [ "${FRAMEWORKS:-}" = install ] && [ -d "$1" ]; then
  sh .ci/frameworks-gpu.sh "$1"
fi

"$python" - <<'END'
import importlib
import sys
from pathlib import Path

ASKED = {
    "torch": lambda torch: torch.version.cuda and f"for CUDA {torch.version.cuda}",
    "onnxruntime": lambda runtime: "CUDAExecutionProvider" in runtime.get_available_providers() and "with CUDA",
    "tensorrt": lambda _: "is there",
    "cuda.bindings": lambda _: "is there",
    "nvidia.dali": lambda _: "is there",
    "pynvml": lambda _: "is there",
}
for name, ask in ASKED.items():
    try:
        module = importlib.import_module(name)
        said = ask(module) or "is built for the CPU alone, tests that need it on a GPU are skipped"
    except Exception as error:
        module, said = None, f"cannot be imported, tests that need it are skipped: {error}"
    print(name, getattr(module, "__version__", ""), said)

NEEDED = ("pytest", "pytest_timeout", "hypothesis", "onnx", "tritonclient.grpc", "conch.app")
missing = []
for name in NEEDED:
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
# Not resolved: the commands of a virtual environment lie beside its link to the interpreter.
if not (Path(sys.executable).parent / "conch").exists():
    missing.append("the command conch")
if missing:
    sys.exit(f"test-gpu: {sys.executable} lacks {', '.join(missing)}: {sys.executable} -m pip install -e '.[dev]'")
END

# Other tests are not even imported: they may need what a machine with a GPU has no use for.
exec "$python" -m pytest -m gpu -rs -p no:cacheprovider $(grep -rl --include='test_*.py' 'pytest\.mark\.gpu' tests | sort)
