#!/bin/sh
# Installs the frameworks that tests use and `dev` leaves out for their size: frameworks.sh VENV. Tests of those that
# cannot be had are skipped, and say so.
set -eu

python=$1/bin/python
has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
pip() { "$python" -m pip -q --disable-pip-version-check "$@"; }

# DALI (600 MB): one wheel for CPUs and GPUs.
has nvidia.dali || pip install nvidia-dali-cuda130 || echo "frameworks: DALI cannot be had, its tests are skipped"
has tensorflow || pip install tensorflow-cpu==2.21.0 || echo "frameworks: TensorFlow cannot be had, its tests are skipped"

# PyTorch: elsewhere than on machines that have a wheel for the CPU, it brings gigabytes of CUDA with it.
if has torch || "$python" -m pip install --dry-run --quiet --report - --no-deps torch==2.13.0 2>/dev/null | grep -q '2\.13\.0+cpu'; then
  has torch || pip install torch==2.13.0 || echo "frameworks: PyTorch cannot be had, its tests are skipped"
  has safetensors || pip install safetensors || echo "frameworks: safetensors cannot be had, its tests take another format"
else
  echo "frameworks: no PyTorch for the CPU alone, its tests are skipped"
fi
