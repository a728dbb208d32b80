"""LitServe's `LitAPI`: a model as steps from a request's payload to a response's."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from conch.types.error import unsupported


class LitAPI(ABC):
    """`setup`, then for each request `decode_request`, `predict`, `encode_response`; of several at once with
    `max_batch_size`, where `batch` joins what was decoded and `unbatch` parts what was predicted."""

    max_batch_size: int = 1
    #: Seconds that a request waits for others.
    batch_timeout: float = 0.0
    api_path: str = "/predict"
    #: `predict` and `encode_response` are generators, and each value goes to the client when it is made.
    stream: bool = False
    #: Steps may be coroutine functions, and requests overlap.
    enable_async: bool = False
    #: Where this copy runs: "cpu" or "cuda:0".
    device: str | None = None
    #: Seconds that a request may wait in the queue; False or -1 for ever.
    request_timeout: float | bool | None = None

    def __init__(
        self,
        max_batch_size: int = 1,
        batch_timeout: float = 0.0,
        api_path: str = "/predict",
        stream: bool = False,
        loop: Any = "auto",
        spec: Any = None,
        mcp: Any = None,
        enable_async: bool = False,
    ) -> None:
        for name, value in (("loop", None if loop == "auto" else loop), ("spec", spec), ("mcp", mcp)):
            if value is not None:
                raise unsupported(f"LitAPI({name}=...) is not supported by conch.litserve")
        self.max_batch_size = max_batch_size
        self.batch_timeout = batch_timeout
        self.api_path = api_path
        self.stream = stream
        self.enable_async = enable_async

    @abstractmethod
    def setup(self, device: str) -> None:
        """Once for each copy, before the server answers."""

    def decode_request(self, request: Any, **kwargs: Any) -> Any:
        return request

    def batch(self, inputs: list[Any]) -> Any:
        """Arrays and tensors are stacked, anything else stays a list."""
        if hasattr(inputs[0], "__torch_function__"):
            import torch  # noqa: PLC0415  whose tensors these are

            return torch.stack(inputs)
        if type(inputs[0]).__name__ == "ndarray":
            import numpy as np  # noqa: PLC0415

            return np.stack(inputs)
        return inputs

    @abstractmethod
    def predict(self, x: Any, **kwargs: Any) -> Any: ...

    def unbatch(self, output: Any) -> Any:
        return _each(output) if self.stream else list(output)

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        return output

    def health(self) -> bool:
        """Whether the model is well, for `/health`."""
        return True

    def check(self) -> None:
        """Raises ValueError for wishes that do not go together."""
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, found {self.max_batch_size}")
        if self.batch_timeout < 0:
            raise ValueError(f"batch_timeout must not be negative, found {self.batch_timeout}")
        if not self.api_path.startswith("/"):
            raise ValueError(f"api_path must begin with '/', such as '/predict', found '{self.api_path}'")
        if self.enable_async and self.max_batch_size > 1:
            raise ValueError("enable_async is for max_batch_size=1: requests overlap there")
        steps = ["predict", "encode_response"]
        if type(self).unbatch is not LitAPI.unbatch and self.max_batch_size > 1:
            steps.append("unbatch")
        for step in steps if self.stream else ():
            function = getattr(self, step)
            if not (inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)):
                raise ValueError(f"with stream=True {type(self).__name__}.{step} must yield its values")


def _each(output: Iterator[Any]) -> Iterator[list[Any]]:
    for values in output:
        yield list(values)
