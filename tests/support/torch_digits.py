"""A classifier of real digits in PyTorch, its files in a repository, and clients that ask it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from sklearn.datasets import load_digits

from support.server import Server

#: Kernels of other batch sizes, and graphs with folded constants, add in another order.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
CONFIG = """
backend: "pytorch"
max_batch_size: 32
input [ { name: "x" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 10 ] } ]
dynamic_batching { max_queue_delay_microseconds: 2000 }
"""


def layers(hidden: int = 32) -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10))


class Digits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@cache
def trained(seed: int) -> tuple[Any, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A classifier, images that it has not seen, and what they are."""
    digits = load_digits()
    images, labels = digits.data.astype(np.float32) / 16, digits.target
    torch.manual_seed(seed)
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.from_numpy(images[:1400]), torch.from_numpy(labels[:1400])
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), images[1400:], labels[1400:]


def alone(model: Any, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]


def write_script(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(2, 64)), str(path))


def write_exported(model: Any, path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (torch.zeros(2, 64),), dynamic_shapes=({0: batch},))
        if path.suffix:
            torch.export.save(program, str(path))
        return program


def folder(repository: Path, name: str, config: str = CONFIG) -> Path:
    """The version folder of a new model."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    if config:
        (repository / name / "config.pbtxt").write_text(config)
    return version


def over_http(server: Server, name: str, images: np.ndarray[Any, Any], output: str = "OUTPUT__0") -> Any:
    with httpclient.InferenceServerClient(server.http) as client:
        given = httpclient.InferInput("x", list(images.shape), "FP32")
        given.set_data_from_numpy(images)
        return client.infer(name, [given]).as_numpy(output)


def over_grpc(server: Server, name: str, images: np.ndarray[Any, Any]) -> list[Any]:
    """Single images, all on their way at once, so that they meet in batches."""
    with grpcclient.InferenceServerClient(server.grpc) as client:
        answers: list[Any] = [None] * len(images)
        done = threading.Semaphore(0)

        def keep(index: int) -> Any:
            def callback(result: Any, error: Any) -> None:
                answers[index] = error if error is not None else result.as_numpy("OUTPUT__0")
                done.release()

            return callback

        for index, image in enumerate(images):
            given = grpcclient.InferInput("x", [1, 64], "FP32")
            given.set_data_from_numpy(image[None])
            client.async_infer(name, [given], callback=keep(index))
        for _ in images:
            assert done.acquire(timeout=60)
        return answers


def load(server: Server, name: str) -> str:
    """The error's text, empty if it went well."""
    request = urllib.request.Request(f"http://{server.http}/v2/repository/models/{name}/load", b"", method="POST")
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"])
    return ""
