"""What decorators know of the model that calls them: set around each call, in the thread or task that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from conch.pytriton.exceptions import PyTritonValidationError
from conch.pytriton.model_config.common import DynamicBatcher
from conch.pytriton.model_config.tensor import Tensor


@dataclass(frozen=True)
class BoundModel:
    """PyTriton's TritonModelConfig, as far as callables look at it. Tensors have names."""

    model_name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    batching: bool
    max_batch_size: int
    batcher: DynamicBatcher
    decoupled: bool


current: ContextVar[BoundModel] = ContextVar("conch_pytriton_model")


@dataclass(frozen=True)
class TritonContext:
    """What `@triton_context` gives."""

    model_config: BoundModel

    @property
    def model_configs(self) -> Any:
        """As a mapping from callables to configs: of the callable that asks."""
        return _Always(self.model_config)


@dataclass(frozen=True)
class _Always:
    model_config: BoundModel

    def __getitem__(self, infer_callable: Any) -> BoundModel:
        return self.model_config


def model() -> BoundModel:
    found = current.get(None)
    if found is None:
        raise PyTritonValidationError("the callable is not bound: decorators work when Triton.bind() has its function")
    return found
