"""Bytes of TensorFlow's files, written without TensorFlow; and real models, made by it in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None,
    reason="tensorflow is not installed: pip install 'conch[tensorflow]'",
)
FLOAT, INT64, STRING, BFLOAT16 = 1, 9, 7, 14

#: Trains a classifier of scikit-learn's digits and saves it and others; what they answer goes to expected.npz.
PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

root = sys.argv[1]
data = load_digits()
pixels, labels = (data.data / 16).astype("float32"), data.target.astype("int64")


class Digits(tf.Module):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(0)
        self.w1 = tf.Variable(rng.normal(0, 0.1, (64, 32)).astype("float32"))
        self.w2 = tf.Variable(rng.normal(0, 0.1, (32, 10)).astype("float32"))

    def logits(self, x):
        return tf.nn.relu(x @ self.w1) @ self.w2

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, name="pixels")])
    def serve(self, pixels):
        logits = self.logits(pixels)
        return {"probabilities": tf.nn.softmax(logits), "digit": tf.argmax(logits, -1)}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 2], tf.string, name="words"), tf.TensorSpec([None, 1], tf.int64, name="rows")
        ]
    )
    def words(self, words, rows):
        with tf.control_dependencies([tf.debugging.assert_less(rows, tf.constant(3, tf.int64), "row is out of reach")]):
            row = tf.gather(self.w2, rows[:, 0])
        return {"upper": tf.strings.upper(words), "length": tf.strings.length(words), "row": row}


model = Digits()
for _ in range(200):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model.logits(pixels)))
    for weight, gradient in zip((model.w1, model.w2), tape.gradient(loss, (model.w1, model.w2))):
        weight.assign_sub(0.5 * gradient)
tf.saved_model.save(
    model, root + "/saved", signatures={"serving_default": model.serve, "words": model.words}
)
answer = model.serve(pixels)
weights = model.w2.numpy()
graph = tf.Graph()
with graph.as_default():
    v1 = tf.compat.v1
    a, b = (v1.placeholder(tf.float32, [None, 4], name=name) for name in ("INPUT0", "INPUT1"))
    scale = v1.get_variable("scale", initializer=tf.constant(3.0), use_resource=True)
    tf.add(a, b, name="OUTPUT0")
    tf.multiply(a - b, scale, name="OUTPUT1")
    v1.global_variables_initializer()
open(root + "/graph.pb", "wb").write(graph.as_graph_def().SerializeToString())
np.savez(
    root + "/expected.npz", pixels=pixels, labels=labels, digit=answer["digit"].numpy(),
    probabilities=answer["probabilities"].numpy(), weights=weights,
)
"""


def make_models(root: Path) -> None:
    """`saved`, `graph.pb` and `expected.npz` in `root`."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def block(field: int, content: bytes | str) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def entry(field: int, name: str, content: bytes) -> bytes:
    return block(field, block(1, name) + block(2, content))


def shape(dims: Sequence[int] | None) -> bytes:
    return number(3, 1) if dims is None else b"".join([block(2, number(1, size)) for size in dims])


def info(tensor: str, kind: int, dims: Sequence[int] | None) -> bytes:
    """A TensorInfo; without a name it is one of a sparse tensor."""
    name = block(1, tensor) if tensor else block(4, b"")
    return name + number(2, kind) + block(3, shape(dims))


def signature(inputs: Mapping[str, bytes], outputs: Mapping[str, bytes]) -> bytes:
    return b"".join(
        [entry(1, name, each) for name, each in inputs.items()]
        + [entry(2, name, each) for name, each in outputs.items()]
    )


def graph(tags: Sequence[str], signatures: Mapping[str, bytes]) -> bytes:
    """A MetaGraphDef, with a graph of junk that nobody has to read."""
    head = block(1, b"".join([block(4, tag) for tag in tags]))
    return head + block(2, b"\xff" * 64) + b"".join([entry(5, name, each) for name, each in signatures.items()])


def saved_model(*graphs: bytes) -> bytes:
    return number(1, 1) + b"".join([block(2, each) for each in graphs])


def node(name: str, operation: str, kind: int = 0, dims: Sequence[int] | None = None) -> bytes:
    """A NodeDef, as a field of a GraphDef."""
    content = block(1, name) + block(2, operation)
    if kind:
        content += entry(5, "dtype", number(6, kind)) + entry(5, "shape", block(7, shape(dims)))
    return block(1, content)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
