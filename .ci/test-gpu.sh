#!/bin/sh
# Runs every test marked `gpu` where there is an NVIDIA GPU: test-gpu.sh VENV. Where there is none it says so, and why.
set -eu

python=$1/bin/python
here=$(cd "$(dirname "$0")/.." && pwd)
cd "$here"

if ! reason=$("$python" -c "
from conch.config.gpus import Absent, read_gpus
try:
    for gpu in read_gpus():
        print(f'GPU {gpu.device}: {gpu.name}, compute capability {gpu.capability}, {gpu.memory / 2**30:.1f} GiB')
except Absent as absent:
    raise SystemExit(f'test-gpu: nothing was run, there is no GPU here: {absent}')
" 2>&1); then
  echo "$reason"
  exit 0
fi
echo "$reason"
for each in onnxruntime torch pynvml; do
  "$python" -c "import $each; print('$each', getattr($each, '__version__', 'is there'))" 2>/dev/null ||
    echo "$each is not installed: tests that need it are skipped"
done
exec "$python" -m pytest -m gpu -rs -p no:cacheprovider tests
