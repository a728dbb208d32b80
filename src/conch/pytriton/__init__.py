"""PyTriton's names over this server: a program runs after `pytriton` is `conch.pytriton` in its imports."""

from conch.pytriton import decorators
from conch.pytriton.decorators import batch, sample
from conch.pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from conch.pytriton.proxy.types import Request
from conch.pytriton.triton import Triton, TritonConfig

__all__ = [
    "DynamicBatcher",
    "ModelConfig",
    "Request",
    "Tensor",
    "Triton",
    "TritonConfig",
    "batch",
    "decorators",
    "sample",
]
