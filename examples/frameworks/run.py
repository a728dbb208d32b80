"""One server, many frameworks: trains the models (train.py), serves them together, and asks each for unseen digits.

    run.py [--only NAME ...] [--repository FOLDER]

Prints for each model how many answers are right and how far they are from its framework, called directly.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from serving import serving

HERE = Path(__file__).resolve().parent
#: The largest difference of a probability that still counts as the same answer.
SAME = 1e-4
Array = np.ndarray[Any, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every model answers what its framework does."""
    options = _options(argv)
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frameworks-")))
        repository, answers = options.repository or place / "repository", place / "answers.npz"
        _train(repository, answers, options.only)
        with np.load(answers) as file:
            expected = dict(file)
        images, labels = expected.pop("images"), expected.pop("labels")
        if "pipeline" in expected:
            expected["pipeline_bls"] = expected["pipeline"]
        began = time.monotonic()
        http_url, grpc_url = stack.enter_context(serving(repository, place / "server.log"))
        print(f"\nready after {time.monotonic() - began:.1f} s\n")
        print(f"{'model':14}{'backend':14}{'batch':>6}{'right':>9}{'difference':>12}{'ms':>9}")
        rpc = stack.enter_context(grpcclient.InferenceServerClient(grpc_url))
        web = stack.enter_context(httpclient.InferenceServerClient(http_url))
        worst = [report(rpc, web, name, images, labels, direct) for name, direct in expected.items()]
    return 0 if worst and max(worst) <= SAME else 1


def report(rpc: Any, web: Any, name: str, images: Array, labels: Array, direct: Array) -> float:
    """Half of the images over gRPC, half over HTTP; prints a line of the table; the largest difference."""
    metadata = rpc.get_model_metadata(name, as_json=True)
    config = rpc.get_model_config(name, as_json=True)["config"]
    rows, half = min(32, config.get("max_batch_size", 1)), len(images) // 2
    began = time.perf_counter()
    found = np.concatenate(
        [
            *[ask(rpc, grpcclient, metadata, images[at : min(at + rows, half)]) for at in range(0, half, rows)],
            *[ask(web, httpclient, metadata, images[at : at + rows]) for at in range(half, len(images), rows)],
        ]
    )
    took = time.perf_counter() - began
    worst = float(np.abs(found - direct).max())
    backend = config.get("backend") or config.get("platform", "")
    right = (found.argmax(1) == labels).mean()
    print(f"{name:14}{backend:14}{rows:6}{right:9.1%}{worst:12.1e}{1000 * took:9.0f}", flush=True)
    return worst


def ask(client: Any, module: Any, metadata: Mapping[str, Any], images: Array) -> Array:
    """What a model says of these images. Its metadata tells what its tensors are called, and if it wants files."""
    (given,) = metadata["inputs"]
    values = images if given["datatype"] == "FP32" else files_of(images)
    tensor = module.InferInput(given["name"], list(values.shape), given["datatype"])
    tensor.set_data_from_numpy(values)
    answer = client.infer(metadata["name"], [tensor])
    return np.asarray(answer.as_numpy(metadata["outputs"][0]["name"]))


def files_of(images: Array) -> Array:
    """Each image as the bytes of a PGM file."""
    files = [b"P5 8 8 16\n" + np.rint(16 * image).astype(np.uint8).tobytes() for image in images]
    return np.array(files, dtype=object).reshape(-1, 1)


def _train(repository: Path, answers: Path, only: Sequence[str] | None) -> None:
    """In a process of its own: what trains needs not stay in memory, and each framework's threads end with it."""
    command = [sys.executable, str(HERE / "train.py"), str(repository), f"--answers={answers}"]
    subprocess.run([*command, "--only", *only] if only else command, check=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models of train.py alone")
    parser.add_argument("--repository", type=Path, help="keep the model repository here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
