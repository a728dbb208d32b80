#!/bin/sh
# Installs the frameworks that `make test-gpu` tests as they are built for GPUs, in place of those for the CPU alone, and
# takes gigabytes: frameworks-gpu.sh VENV. What cannot be had stays as it is; its tests are skipped, and say so.
set -eu

python=$1/bin/python
can() { "$python" -c "$1" >/dev/null 2>&1; }
pip() { "$python" -m pip -q --disable-pip-version-check "$@"; }
lacks() { echo "frameworks-gpu: $1 cannot be had for GPUs, its tests are skipped"; }

can 'import torch; assert torch.version.cuda' || pip install --force-reinstall torch safetensors || lacks PyTorch
can 'import tensorrt, cuda.bindings' || pip install tensorrt cuda-python || lacks TensorRT
can 'import nvidia.dali' || pip install nvidia-dali-cuda130 || lacks DALI
# Both packages of ONNX Runtime are one folder: the one for CPUs goes once the other is sure to come.
can 'import onnxruntime as o; assert "CUDAExecutionProvider" in o.get_available_providers()' || {
  pip download --no-deps --dest "$1/.wheels" onnxruntime-gpu &&
    pip uninstall -y onnxruntime &&
    pip install --find-links "$1/.wheels" 'onnxruntime-gpu[cuda,cudnn]'
} || lacks "ONNX Runtime"
