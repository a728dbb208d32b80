"""Models on stand-ins of TensorRT (`fake_tensorrt.install` first), loaded as the server loads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from conch.backend.api import Host, ModelFiles, Placement
from conch.backend.tensorrt.backend import TensorRtBackend
from conch.memory.pinned import PinnedPool
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from support import fake_tensorrt
from support.onnx_models import Served, make_spec


def load(
    directory: Path,
    content: bytes | None = None,
    config: str = "",
    placement: Placement | None = None,
    settings: dict[str, str] | None = None,
    pool: PinnedPool | None = None,
) -> Served:
    (directory / "1").mkdir(exist_ok=True)
    (directory / "1" / "model.plan").write_bytes(fake_tensorrt.plan() if content is None else content)
    made = ModelConfig(name="m", backend="tensorrt", platform="tensorrt_plan")
    text_format.Parse(config, made)
    loop = asyncio.new_event_loop()
    loop.close()
    host, backend, stats, files = (
        Host(loop, settings or {}, 2, pinned=pool or PinnedPool(0)),
        TensorRtBackend(),
        ModelStats(),
        ModelFiles(directory, 1),
    )
    backend.complete(made, files, host)
    spec = make_spec(made)
    model = backend.load(made, spec, files, host, stats)
    return Served(made, spec, stats, model.instance(placement or Placement("g_0", "GPU")))


def rows(count: int) -> np.ndarray[Any, Any]:
    return np.arange(3 * count, dtype=np.float32).reshape(count, 3)


def refused(call: Callable[[], Any]) -> InferError:
    with pytest.raises(InferError) as caught:
        call()
    return caught.value
