"""The real model of the comparison: a CNN of MobileNetV2's shape with fixed random weights, for both servers.

Conch gets the bare ONNX file. The Triton that pip can install has no ONNX backend: it gets a Python model that runs the
same file on ONNX Runtime, batches joined, with one single-threaded instance per core (the fastest of the simple ways).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

#: One image and its scores, without the batch dimension.
IMAGE_SHAPE = (3, 64, 64)
CLASSES = 1000

#: MobileNetV2's inverted residual blocks: expansion, channels, repeats, stride of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

TRITON_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 dims: [ %(image)s ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ %(classes)d ] } ]
instance_group [ { count: %(instances)d kind: KIND_CPU } ]
dynamic_batching { }
"""

TRITON_MODEL = """import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        images = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        joined = images[0] if len(images) == 1 else np.concatenate(images)
        (scores,) = self.session.run(["scores"], {"image": joined})
        responses = []
        row = 0
        for image in images:
            mine = scores[row : row + len(image)]
            row += len(image)
            responses.append(pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("scores", mine)]))
        return responses
"""


def write_cnn(ours: Path, theirs: Path) -> Path:
    """The model `cnn` in both repositories; the path of Conch's ONNX file."""
    content = make_cnn().SerializeToString()
    for root in (ours, theirs):
        (root / "cnn" / "1").mkdir(parents=True)
        (root / "cnn" / "1" / "model.onnx").write_bytes(content)
    facts = {
        "image": ", ".join(map(str, IMAGE_SHAPE)),
        "classes": CLASSES,
        "instances": len(os.sched_getaffinity(0)),
    }
    (theirs / "cnn" / "config.pbtxt").write_text(TRITON_CONFIG % facts)
    (theirs / "cnn" / "1" / "model.py").write_text(TRITON_MODEL)
    return ours / "cnn" / "1" / "model.onnx"


def make_cnn(seed: int = 0) -> ModelProto:
    """Input `image` [batch, 3, 64, 64], output `scores` [batch, 1000], both FP32; about 14 MB.

    Weights are scaled so that activations keep their size through the layers. Batch normalization is folded into the
    convolutions, as exporters do.
    """
    net = _Net(seed)
    x = net.conv("image", 3, 32, kernel=3, stride=2)
    channels = 32
    for expansion, width, repeats, stride in BLOCKS:
        for repeat in range(repeats):
            x = net.block(x, channels, width, expansion, stride if repeat == 0 else 1)
            channels = width
    x = net.conv(x, channels, 1280)
    x = net.node("GlobalAveragePool", [x])
    x = net.node("Flatten", [x], axis=1)
    net.node("MatMul", [x, net.weight((1280, CLASSES), 1280, gain=1)], output="scores")
    return net.model()


class _Net:
    """A graph under construction. Values are known by their names."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._tensors = [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.float32(6), "six"),
        ]

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(self, shape: tuple[int, ...], fan_in: int, gain: float) -> str:
        values = self._random.standard_normal(shape) * np.sqrt(gain / fan_in)
        name = f"weight_{len(self._tensors)}"
        self._tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, x: str, channels: int, width: int, kernel: int = 1, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        """A convolution with bias, and ReLU6 behind it if `relu`."""
        fan_in = channels // group * kernel * kernel
        weights = self.weight((width, channels // group, kernel, kernel), fan_in, gain=2 if relu else 1)
        bias = self.weight((width,), 1, gain=1e-4)
        x = self.node(
            "Conv",
            [x, weights, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
            group=group,
        )
        return self.node("Clip", [x, "zero", "six"]) if relu else x

    def block(self, x: str, channels: int, width: int, expansion: int, stride: int) -> str:
        """Expand, filter each channel, project; added to the input where the shapes allow."""
        y = x
        inner = channels * expansion
        if expansion > 1:
            y = self.conv(y, channels, inner)
        y = self.conv(y, inner, inner, kernel=3, stride=stride, group=inner)
        y = self.conv(y, inner, width, relu=False)
        return self.node("Add", [x, y]) if stride == 1 and channels == width else y

    def model(self) -> ModelProto:
        made = helper.make_graph(
            self._nodes,
            "cnn",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *IMAGE_SHAPE])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
            self._tensors,
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        checker.check_model(model)
        return model
