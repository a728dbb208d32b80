"""MiniLM's encoder as an ONNX graph, built from its weights: no deep-learning framework is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

Weights = Mapping[str, np.ndarray[Any, Any]]

#: Added to the scores of tokens that are not there: nothing is left of them after the softmax.
FAR_BELOW = -1e9


@dataclass(frozen=True, slots=True)
class Bert:
    """The numbers of a BERT model's `config.json` that its graph depends on."""

    layers: int
    heads: int
    width: int
    positions: int
    epsilon: float

    @classmethod
    def read(cls, path: Path) -> Self:
        facts = json.loads(path.read_text())
        if facts["model_type"] != "bert" or facts["hidden_act"] != "gelu":
            raise ValueError(
                f"{path}: expected a BERT model with gelu, got {facts['model_type']}, {facts['hidden_act']}"
            )
        return cls(
            facts["num_hidden_layers"],
            facts["num_attention_heads"],
            facts["hidden_size"],
            facts["max_position_embeddings"],
            facts["layer_norm_eps"],
        )


def read_safetensors(path: Path) -> Weights:
    """The tensors of a file: eight bytes of length, as many bytes of JSON, then the numbers, little-endian FP32."""
    content = memoryview(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(bytes(content[8:start])).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(content[start + begin : start + end], "<f4").reshape(entry["shape"])
    return tensors


def make_encoder(bert: Bert, weights: Weights) -> ModelProto:
    """`input_ids`, `attention_mask` INT64 [batch, tokens] to `last_hidden_state` FP32 [batch, tokens, width]."""
    net = _Net(bert, weights)
    mask = net.mask("attention_mask")
    x = net.embed("input_ids")
    for number in range(bert.layers):
        layer = f"encoder.layer.{number}"
        y = net.attention(x, mask, f"{layer}.attention.self")
        x = net.add_and_normalize(
            net.dense(y, f"{layer}.attention.output.dense"), x, f"{layer}.attention.output.LayerNorm"
        )
        y = net.node("Gelu", [net.dense(x, f"{layer}.intermediate.dense")])
        x = net.add_and_normalize(net.dense(y, f"{layer}.output.dense"), x, f"{layer}.output.LayerNorm")
    return net.model(x)


class _Net:
    """A graph under construction. Values are known by their names."""

    def __init__(self, bert: Bert, weights: Weights) -> None:
        self._bert = bert
        self._weights = weights
        self._nodes: list[Any] = []
        self._tensors: dict[str, Any] = {}

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def tensor(self, name: str, values: Any) -> str:
        """An initializer, once for each name."""
        if name not in self._tensors:
            self._tensors[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def numbers(self, *values: int) -> str:
        return self.tensor("_".join(["numbers", *map(str, values)]), np.array(values, np.int64))

    def mask(self, name: str) -> str:
        """0 for tokens that are there, far below 0 for others: [batch, 1, 1, tokens]."""
        there = self.node("Cast", [self.node("Unsqueeze", [name, self.numbers(1, 2)])], to=TensorProto.FLOAT)
        missing = self.node("Sub", [self.tensor("one", np.float32(1)), there])
        return self.node("Mul", [missing, self.tensor("far_below", np.float32(FAR_BELOW))])

    def embed(self, ids: str) -> str:
        """Word and position of each token. All are of the first token type: its vector is added to the positions'."""
        of = "embeddings.{}_embeddings.weight".format
        words = self.node("Gather", [self.tensor("words", self._weights[of("word")]), ids])
        table = self._weights[of("position")] + self._weights[of("token_type")][0]
        length = self.node("Slice", [self.node("Shape", [ids]), self.numbers(1), self.numbers(2)])
        places = self.node("Slice", [self.tensor("positions", table), self.numbers(0), length, self.numbers(0)])
        return self.add_and_normalize(words, places, "embeddings.LayerNorm")

    def dense(self, x: str, name: str, scale: float = 1.0) -> str:
        """x * weight + bias, all times `scale`."""
        weight = self.tensor(f"{name}.weight", self._weights[f"{name}.weight"].T * np.float32(scale))
        bias = self.tensor(f"{name}.bias", self._weights[f"{name}.bias"] * np.float32(scale))
        return self.node("Add", [self.node("MatMul", [x, weight]), bias])

    def add_and_normalize(self, x: str, y: str, name: str) -> str:
        parts = [self.tensor(f"{name}.{part}", self._weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        added = self.node("Add", [x, y])
        return self.node("LayerNormalization", [added, *parts], axis=-1, epsilon=self._bert.epsilon)

    def attention(self, x: str, mask: str, name: str) -> str:
        size = self._bert.width // self._bert.heads
        shape = self.numbers(0, 0, self._bert.heads, size)

        def split(part: str, order: Sequence[int], scale: float = 1.0) -> str:
            """[batch, tokens, width] to a matrix for each head."""
            wide = self.node("Reshape", [self.dense(x, f"{name}.{part}", scale), shape])
            return self.node("Transpose", [wide], perm=order)

        # Scores are divided by the square root of the size: queries are, beforehand.
        query, key, value = (
            split("query", (0, 2, 1, 3), size**-0.5),
            split("key", (0, 2, 3, 1)),
            split("value", (0, 2, 1, 3)),
        )
        scores = self.node("Add", [self.node("MatMul", [query, key]), mask])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value])
        joined = self.node("Transpose", [mixed], perm=(0, 2, 1, 3))
        return self.node("Reshape", [joined, self.numbers(0, 0, self._bert.width)])

    def model(self, output: str) -> ModelProto:
        """Names the output, and makes the whole."""
        self.node("Identity", [output], "last_hidden_state")
        dims = ["batch", "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "minilm",
            [helper.make_tensor_value_info(n, TensorProto.INT64, dims) for n in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*dims, self._bert.width])],
            list(self._tensors.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        checker.check_model(model)
        return model
