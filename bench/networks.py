"""The networks that the frameworks are compared with: weights are random and fixed, the same in every format.

They are built by PyTorch when they are asked for and exported to what each framework reads; nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import BLOCKS, CLASSES

#: The largest batch of the models that need a config.
ROWS = 8
WIDTH, HEADS, LAYERS, WORDS, LENGTH = 256, 4, 2, 30_522, 128


@dataclass(frozen=True, slots=True)
class Network:
    """One network: the input without its batch dimension, as clients send it, and how it is made."""

    name: str
    input: str
    datatype: str
    shape: tuple[int, ...]
    outputs: int
    make: Callable[[], Any]
    #: Whether the dimensions beside the batch may be of any size.
    free: bool = False

    def example(self, rows: int) -> np.ndarray[Any, Any]:
        """What a client may send; zeros where the numbers choose from a table."""
        if self.datatype == "INT64":
            return np.zeros((rows, *self.shape), np.int64)
        return np.random.default_rng(1).standard_normal((rows, *self.shape), dtype=np.float32)


def make_cnn() -> Any:
    """A network of MobileNetV2's shape, batch normalization folded into the convolutions."""
    import torch
    from torch import nn

    def conv(channels: int, width: int, kernel: int = 1, stride: int = 1, group: int = 1, relu: bool = True) -> Any:
        layer = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=group)
        nn.init.normal_(layer.weight, std=((2 if relu else 1) / (channels // group * kernel * kernel)) ** 0.5)
        return nn.Sequential(layer, nn.ReLU6()) if relu else layer

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
            super().__init__()
            inner = channels * expansion
            first = [conv(channels, inner)] if expansion > 1 else []
            last = conv(inner, width, relu=False)
            self.body = nn.Sequential(*first, conv(inner, inner, 3, stride, inner), last)
            self.adds = stride == 1 and channels == width

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if self.adds else self.body(x)

    torch.manual_seed(0)
    layers, channels = [conv(3, 32, 3, 2)], 32
    for expansion, width, repeats, stride in BLOCKS:
        for repeat in range(repeats):
            layers.append(Block(channels, width, expansion, stride if repeat == 0 else 1))
            channels = width
    layers += [conv(channels, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers).eval()


def make_encoder() -> Any:
    """Token and position embeddings, layers as BERT's, and two scores from the first token."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    class Layer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Linear(WIDTH, 3 * WIDTH)
            self.out = nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
            self.norm_a, self.norm_b = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, x: Any) -> Any:
            rows, length, _ = x.shape
            q, k, v = self.parts(x).view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
            scores = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
            x = self.norm_a(x + self.out((scores @ v).transpose(1, 2).reshape(rows, length, WIDTH)))
            return self.norm_b(x + self.down(f.gelu(self.up(x))))

    class Encoder(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(512, WIDTH)
            self.layers = nn.Sequential(*[Layer() for _ in range(LAYERS)])
            self.scores = nn.Linear(WIDTH, 2)

        def forward(self, ids: Any) -> Any:
            x = self.words(ids) + self.places.weight[: ids.shape[1]]
            return self.scores(self.layers(x)[:, 0])

    torch.manual_seed(0)
    return Encoder().eval()


NETWORKS = (
    Network("cnn64", "image", "FP32", (3, 64, 64), CLASSES, make_cnn),
    Network("cnn224", "image", "FP32", (3, 224, 224), CLASSES, make_cnn),
    Network("encoder", "ids", "INT64", (LENGTH,), 2, make_encoder, free=True),
)


def write_networks(root: Path, network: Network) -> None:
    """The network as models `<network>_onnx`, `<network>_torch` and `<network>_openvino`, with default settings.

    ONNX and OpenVINO need no config; TorchScript does not know the shapes of its tensors, so its config says them, and
    the batch: as many rows as the framework alone is tried with.
    """
    import openvino as ov
    import torch

    places = {name: root / f"{network.name}_{name}" for name in ("onnx", "torch", "openvino")}
    for place in places.values():
        (place / "1").mkdir(parents=True)
    example = torch.from_numpy(network.example(2))
    file = places["onnx"] / "1" / "model.onnx"
    axes = {network.input: {0: "batch"} | ({1: "length"} if network.free else {}), "scores": {0: "batch"}}
    with warnings.catch_warnings(), torch.no_grad():
        # It says that there will be another way to export.
        warnings.simplefilter("ignore")
        made = network.make()
        traced = torch.jit.trace(made, example)
        traced.save(str(places["torch"] / "1" / "model.pt"))
        torch.onnx.export(
            made, (example,), str(file), input_names=[network.input], output_names=["scores"], dynamic_axes=axes,
            opset_version=17, dynamo=False,
        )  # fmt: skip
    ov.save_model(ov.Core().read_model(file), places["openvino"] / "1" / "model.xml", compress_to_fp16=False)
    dims = ", ".join(["-1"] * len(network.shape) if network.free else map(str, network.shape))
    (places["torch"] / "config.pbtxt").write_text(
        f'platform: "pytorch_libtorch" max_batch_size: {ROWS} dynamic_batching {{ }}\n'
        f'input {{ name: "INPUT__0" data_type: TYPE_{network.datatype} dims: [ {dims} ] }}\n'
        f'output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: {network.outputs} }}\n'
    )
