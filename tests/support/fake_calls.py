"""The server's models as a Python model may call them, made up: what is asked is kept, a function answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BY_NAME, BYTES
from conch.types.error import not_found
from conch.types.model import ModelSpec, TensorSpec
from conch.types.request import InferRequest, RequestForm, RequestHead
from conch.types.response import InferResponse
from conch.types.tensor import Tensor
from support.python_models import form_for

Answer = Callable[[InferRequest], None]


def echo(request: InferRequest) -> None:
    """Every input comes back under its own name."""
    request.sink.reply(request, InferResponse(tensors_of(request)), True)


def tensors_of(request: InferRequest) -> list[Tensor]:
    return [
        Tensor(given.name, BY_NAME[given.datatype], tuple(given.shape), data)
        for given, data in zip(request.form.head.inputs, request.data, strict=True)
    ]


def number(value: float) -> InferResponse:
    return InferResponse([Tensor("Y", BY_NAME["FP64"], (1,), np.array([value], np.float64).tobytes())])


class FakeModels:
    """Any name is a model but `nobody`; one that begins with `stream` is decoupled."""

    def __init__(self, answer: Answer = echo) -> None:
        self.answer = answer
        self.generation = 1
        self.prepared: list[RequestHead] = []
        self.requests: list[InferRequest] = []
        self.withdrawn: list[InferRequest] = []
        self.loads: list[tuple[Any, ...]] = []
        self.failure: Exception | None = None
        self.change = threading.Condition()

    def wait(self, done: Callable[[], bool]) -> None:
        with self.change:
            assert self.change.wait_for(done, 60)

    def prepare(self, head: RequestHead, /) -> RequestForm:
        self.prepared.append(head)
        inputs = tuple(TensorSpec(each.name, BY_NAME[each.datatype], ()) for each in head.inputs)
        shapes = tuple(tuple(each.shape) for each in head.inputs)
        sizes = tuple(
            -1 if spec.datatype is BYTES else int(np.prod(shape)) * spec.datatype.size
            for spec, shape in zip(inputs, shapes, strict=True)
        )
        form = form_for(ModelSpec("m", 1, 0, inputs, ()), (1,))
        parameters = {name: value for name, value in head.parameters.items() if not name.startswith("sequence")}
        values = {
            "head": head,
            "shapes": shapes,
            "sizes": sizes,
            "generation": self.generation,
            "withdraw": self._withdraw,
            "decoupled": head.model_name.startswith("stream"),
            "parameters": parameters,
        }
        return RequestForm(**{name: getattr(form, name) for name in form.__slots__} | values)  # type: ignore[attr-defined]

    def infer(self, request: InferRequest, /) -> None:
        with self.change:
            self.requests.append(request)
            self.change.notify_all()
        self.answer(request)

    def _withdraw(self, request: InferRequest, /) -> None:
        request.cancelled = True
        with self.change:
            self.withdrawn.append(request)
            self.change.notify_all()

    def ready(self, name: str, version: str, /) -> bool:
        if name == "nobody":
            raise not_found("no such model")
        return version in {"", "1"}

    def config(self, name: str, version: str, /) -> ModelConfig:
        return ModelConfig(name=name)

    def load(self, name: str, parameters: Mapping[str, str | bytes], /) -> Future[None]:
        self.loads.append(("load", name, dict(parameters)))
        return self._done()

    def unload(self, name: str, unload_dependents: bool, /) -> Future[None]:
        self.loads.append(("unload", name, unload_dependents))
        return self._done()

    def _done(self) -> Future[None]:
        future: Future[None] = Future()
        if self.failure is not None:
            future.set_exception(self.failure)
        else:
            future.set_result(None)
        return future
