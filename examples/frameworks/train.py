"""Trains a classifier of handwritten digits in every framework that is installed, and writes a model repository.

    train.py REPOSITORY [--only NAME ...] [--seed N] [--answers FILE]

FILE (.npz) gets what each framework itself, called directly on the saved file, says of the images that none has seen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).resolve().parent
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Digits:
    """8 x 8 pixels from 0 to 1, and which digit each image shows."""

    x: Array
    y: Array
    #: Images that nothing is trained on.
    unseen: Array
    labels: Array
    seed: int = 0
    #: What several frameworks save in their own ways, trained once.
    kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, seed: int) -> Digits:
        data = load_digits()
        x = (data.data / 16).astype(np.float32)
        return cls(x[:1400], data.target[:1400], x[1400:], data.target[1400:], seed)

    def once(self, name: str, train: Callable[[Digits], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = train(self)
        return self.kept[name]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="is made; models that it has already are replaced")
    parser.add_argument("--only", nargs="+", choices=sorted(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--seed", type=int, default=0, help="another one gives other models")
    parser.add_argument("--answers", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    digits = Digits.load(options.seed)
    answers: dict[str, Any] = {"images": digits.unseen, "labels": digits.labels}
    for name in options.only or MODELS:
        needs, train = MODELS[name]
        if lacking := [each for each in needs if find_spec(each) is None]:
            print(f"{name}: left out, {', '.join(lacking)} is not installed")
            continue
        answers[name] = train(digits, options.repository)
        accuracy = (answers[name].argmax(1) == digits.labels).mean()
        print(f"{name}: trained, {accuracy:.1%} of {len(digits.labels)} unseen images are right")
    if options.answers:
        np.savez(options.answers, **answers)
    return 0


def version_of(repository: Path, name: str) -> Path:
    """The version folder of a model, beside its config from `model_repository` if it has one there."""
    if (HERE / "model_repository" / name).is_dir():
        shutil.copytree(HERE / "model_repository" / name, repository / name, dirs_exist_ok=True)
    version = repository / name / "1"
    # An ensemble is a config alone; its version folder stays empty, which git does not keep.
    version.mkdir(parents=True, exist_ok=True)
    return version


def network(digits: Digits) -> MLPClassifier:
    return MLPClassifier((32,), max_iter=80, tol=1e-2, random_state=digits.seed).fit(digits.x, digits.y)


def write_onnx(trained: MLPClassifier, path: Path, layers: int, output: str) -> None:
    """The first `layers` layers of a network: 1 for its features, 2 for probabilities."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [helper.make_node("Gemm", ["x", "w0", "b0"], ["a"]), helper.make_node("Relu", ["a"], ["hidden"])]
    if layers == 2:
        nodes.append(helper.make_node("Gemm", ["hidden", "w1", "b1"], ["z"]))
        nodes.append(helper.make_node("Softmax", ["z"], [output], axis=1))
    else:
        nodes[-1].output[0] = output
    weights = {f"w{n}": trained.coefs_[n] for n in range(layers)} | {
        f"b{n}": trained.intercepts_[n] for n in range(layers)
    }
    width = trained.coefs_[layers - 1].shape[1]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def run_onnx(path: Path, x: Array) -> Array:
    from onnxruntime import InferenceSession

    return np.asarray(InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0])


def onnx(digits: Digits, repository: Path) -> Array:
    path = version_of(repository, "onnx") / "model.onnx"
    write_onnx(digits.once("network", network), path, 2, "probabilities")
    return run_onnx(path, digits.unseen)


def openvino(digits: Digits, repository: Path) -> Array:
    import openvino as ov
    from openvino import opset13 as ops

    trained, path = digits.once("network", network), version_of(repository, "openvino") / "model.xml"
    x = hidden = ops.parameter(ov.PartialShape([-1, 64]), np.float32, name="x")
    for n, (weights, bias) in enumerate(zip(trained.coefs_, trained.intercepts_, strict=True)):
        hidden = ops.relu(hidden) if n else hidden
        hidden = ops.add(ops.matmul(hidden, weights.astype(np.float32), False, False), bias.astype(np.float32))
    probabilities = ops.softmax(hidden, 1)
    x.output(0).get_tensor().set_names({"x"})
    probabilities.output(0).get_tensor().set_names({"probabilities"})
    ov.save_model(ov.Model([probabilities], [x], "digits"), path, compress_to_fp16=False)
    # On CPUs that can, OpenVINO's default are 16 bits.
    compiled = ov.Core().compile_model(ov.Core().read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(digits.unseen)[0])


def convolutions(digits: Digits) -> Any:
    import torch

    torch.manual_seed(digits.seed)
    model = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Conv2d(1, 12, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(192, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.from_numpy(digits.x), torch.from_numpy(digits.y)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return torch.nn.Sequential(model, torch.nn.Softmax(1)).eval()


def torchscript(digits: Digits, repository: Path) -> Array:
    import torch

    path = version_of(repository, "torchscript") / "model.pt"
    torch.jit.trace(digits.once("convolutions", convolutions), torch.zeros(2, 64)).save(path)
    with torch.no_grad():
        return np.asarray(torch.jit.load(path)(torch.from_numpy(digits.unseen)).numpy())


def exported(digits: Digits, repository: Path) -> Array:
    import torch

    path = version_of(repository, "exported") / "model.pt2"
    batch = torch.export.Dim("batch", min=1, max=1024)
    model = digits.once("convolutions", convolutions)
    torch.export.save(torch.export.export(model, (torch.zeros(2, 64),), dynamic_shapes=({0: batch},)), path)
    with torch.no_grad():
        return np.asarray(torch.export.load(path).module()(torch.from_numpy(digits.unseen)).numpy())


def tensorflow(digits: Digits, repository: Path) -> Array:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    random = np.random.default_rng(digits.seed)
    model = tf.Module()
    model.w0, model.b0 = (tf.Variable(random.normal(0, 0.1, size).astype("float32")) for size in ((64, 32), (32,)))
    model.w1, model.b1 = (tf.Variable(random.normal(0, 0.1, size).astype("float32")) for size in ((32, 10), (10,)))

    def logits(x: Any) -> Any:
        return tf.nn.relu(x @ model.w0 + model.b0) @ model.w1 + model.b1

    def serve(x: Any) -> Any:
        return {"probabilities": tf.nn.softmax(logits(x))}

    for _ in range(250):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(digits.y, logits(digits.x))
            loss = tf.reduce_mean(losses)
        for variable, gradient in zip(model.variables, tape.gradient(loss, model.variables), strict=True):
            variable.assign_sub(0.7 * gradient)
    path = version_of(repository, "tensorflow") / "model.savedmodel"
    shutil.rmtree(path, ignore_errors=True)
    model.serve = tf.function(serve, input_signature=[tf.TensorSpec([None, 64], tf.float32, name="x")])
    tf.saved_model.save(model, str(path), signatures=model.serve)
    loaded = tf.saved_model.load(str(path))
    return np.asarray(loaded.signatures["serving_default"](x=tf.constant(digits.unseen))["probabilities"])


def xgboost(digits: Digits, repository: Path) -> Array:
    return boosted(digits, digits.x, digits.unseen, version_of(repository, "xgboost"))


def boosted(digits: Digits, x: Array, unseen: Array, version: Path) -> Array:
    from xgboost import XGBClassifier

    model = XGBClassifier(n_estimators=20, max_depth=4, subsample=0.8, n_jobs=2, random_state=digits.seed)
    model.fit(x, digits.y).save_model(version / "xgboost.ubj")
    return np.asarray(model.predict_proba(unseen))


def lightgbm(digits: Digits, repository: Path) -> Array:
    from lightgbm import LGBMClassifier

    model = LGBMClassifier(
        n_estimators=20, num_leaves=15, colsample_bytree=0.8, n_jobs=2, random_state=digits.seed, verbose=-1
    )
    model.fit(digits.x, digits.y).booster_.save_model(version_of(repository, "lightgbm") / "model.txt")
    return np.asarray(model.booster_.predict(digits.unseen))


def scikit_learn(digits: Digits, repository: Path) -> Array:
    model = LogisticRegression(C=10.0 ** -(digits.seed + 1), max_iter=200).fit(digits.x, digits.y)
    version = version_of(repository, "sklearn")
    joblib.dump(model, version / "estimator.joblib")
    # What a version has saved, it reads.
    (version / "requirements.txt").write_text(f"scikit-learn=={sklearn.__version__}\n")
    return np.asarray(model.predict_proba(digits.unseen))


def pipeline(digits: Digits, repository: Path) -> Array:
    """Images in bytes through three frameworks, as an ensemble and as a Python model that calls the others."""
    for name in ("decode", "pipeline", "pipeline_bls"):
        version_of(repository, name)
    path = version_of(repository, "features") / "model.onnx"
    write_onnx(digits.once("network", network), path, 1, "features")
    seen, unseen = run_onnx(path, digits.x), run_onnx(path, digits.unseen)
    return boosted(digits, seen, unseen, version_of(repository, "judge"))


#: Name -> the modules that it needs, and what trains it, writes it, and says what it answers.
MODELS: dict[str, tuple[tuple[str, ...], Callable[[Digits, Path], Array]]] = {
    "onnx": (("onnx", "onnxruntime"), onnx),
    "torchscript": (("torch",), torchscript),
    "exported": (("torch",), exported),
    "openvino": (("openvino",), openvino),
    "tensorflow": (("tensorflow",), tensorflow),
    "xgboost": (("treelite", "xgboost"), xgboost),
    "lightgbm": (("treelite", "lightgbm"), lightgbm),
    "sklearn": (("joblib",), scikit_learn),
    "pipeline": (("onnx", "onnxruntime", "treelite", "xgboost"), pipeline),
}

if __name__ == "__main__":
    # PyTorch deprecates TorchScript, and scikit-learn says that a short training is one.
    warnings.simplefilter("ignore")
    sys.exit(main())
