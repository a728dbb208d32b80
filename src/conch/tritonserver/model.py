"""Triton's `Model`: one version of a model."""

from __future__ import annotations

import json
from typing import Any

from conch.config.json import to_json
from conch.library import Server
from conch.protocol.v2 import answers
from conch.tritonserver.enums import ModelBatchFlag, ModelTxnPropertyFlag
from conch.tritonserver.errors import triton_errors
from conch.tritonserver.request import AsyncResponseIterator, InferenceRequest, ResponseIterator


class Model:
    """`version` -1 is the highest that is ready."""

    def __init__(self, server: Server, name: str, version: int = -1, state: str = "", reason: str = "") -> None:
        self._server = server
        self.name = name
        self.version = version
        self.state = state
        self.reason = reason
        with triton_errors():
            self._model = server.model(name, version)

    def create_request(self, **kwargs: Any) -> InferenceRequest:
        return InferenceRequest(self, **kwargs)

    def infer(
        self, inference_request: InferenceRequest | None = None, raise_on_error: bool = True, **kwargs: Any
    ) -> ResponseIterator:
        """`kwargs` are those of a request, where none is given."""
        request = inference_request or self.create_request(**kwargs)
        inputs, parameters = request.arguments()
        with triton_errors():
            answers = self._model.stream(inputs, parameters=parameters, id=request.request_id or "")
        return ResponseIterator(request, answers, raise_on_error)

    def async_infer(
        self, inference_request: InferenceRequest | None = None, raise_on_error: bool = True, **kwargs: Any
    ) -> AsyncResponseIterator:
        request = inference_request or self.create_request(**kwargs)
        inputs, parameters = request.arguments()
        with triton_errors():
            answers = self._model.stream_async(inputs, parameters=parameters, id=request.request_id or "")
        return AsyncResponseIterator(request, answers, raise_on_error)

    def ready(self) -> bool:
        return self._model.ready()

    def metadata(self) -> dict[str, Any]:
        with triton_errors():
            return _dict(answers.model_metadata(self._model.metadata()))

    def config(self, config_version: int = 1) -> dict[str, Any]:
        with triton_errors():
            return _dict(to_json(self._model.config()))

    def statistics(self) -> dict[str, Any]:
        with triton_errors():
            return _dict(answers.statistics(self._model.statistics()))

    def batch_properties(self) -> ModelBatchFlag:
        with triton_errors():
            return ModelBatchFlag.FIRST_DIM if self._model.config().max_batch_size > 0 else ModelBatchFlag.UNKNOWN

    def transaction_properties(self) -> ModelTxnPropertyFlag:
        with triton_errors():
            return ModelTxnPropertyFlag.DECOUPLED if self._decoupled() else ModelTxnPropertyFlag.ONE_TO_ONE

    def _decoupled(self) -> bool:
        return self._model.config().model_transaction_policy.decoupled

    def __repr__(self) -> str:
        return f"Model({self.name!r}, version={self.version})"


def _dict(text: bytes) -> dict[str, Any]:
    """As the HTTP protocol shows it."""
    found: dict[str, Any] = json.loads(text)
    return found
