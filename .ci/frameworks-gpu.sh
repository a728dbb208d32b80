#!/bin/sh
# Installs the frameworks that `make test-gpu` tests as they are built for GPUs, in place of those for the CPU alone, and
# takes gigabytes: frameworks-gpu.sh VENV. What cannot be had stays as it is; its tests are skipped, and say so. What came
# is tried: an index may offer a build for the CPU alone under the same name.
set -eu

python=$1/bin/python
can() { "$python" -c "$1" >/dev/null 2>&1; }
pip() { "$python" -m pip -q --disable-pip-version-check "$@"; }
lacks() { echo "frameworks-gpu: $1 cannot be had for GPUs, its tests are skipped"; }

# The test of what is there, the packages that bring it, its name.
need() {
  can "$1" && return
  # shellcheck disable=SC2086
  pip install $2 && can "$1" || lacks "$3"
}

need 'import torch; assert torch.version.cuda' '--force-reinstall torch safetensors' PyTorch
need 'import tensorrt; from cuda.bindings import runtime' 'tensorrt cuda-python' TensorRT
need 'import nvidia.dali' nvidia-dali-cuda130 DALI
need 'import pynvml' nvidia-ml-py NVML
# Both packages of ONNX Runtime are one folder: the one for CPUs goes once the other is sure to come.
with_cuda='import onnxruntime as o; assert "CUDAExecutionProvider" in o.get_available_providers()'
can "$with_cuda" || {
  pip download --no-deps --dest "$1/.wheels" onnxruntime-gpu &&
    pip uninstall -y onnxruntime &&
    pip install --find-links "$1/.wheels" 'onnxruntime-gpu[cuda,cudnn]' &&
    can "$with_cuda"
} || lacks "ONNX Runtime"
