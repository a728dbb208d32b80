"""The `onnxruntime` backend: completes configs from ONNX files and makes instances."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any, Final

from conch.backend.agree import check_config
from conch.backend.api import Host, ModelFiles, Placement, ThreadInstance
from conch.backend.complete import complete_config, default_max_batch_size, needs_file
from conch.backend.counters import counters
from conch.backend.onnx.bound import Placed
from conch.backend.onnx.instance import OnnxInstance
from conch.backend.onnx.options import SessionPlan, plan_session, plan_threads
from conch.backend.onnx.providers import choose_providers, on_gpu, unused_accelerators
from conch.backend.onnx.session import find_model, open_session, peek, run_options, runtime
from conch.backend.onnx.signature import read_signature
from conch.backend.portions import portioned
from conch.backend.ragged import read_ragged
from conch.backend.signature import Signature
from conch.config.cut_batches import may_cut
from conch.config.sequence_tensors import with_hidden_entries
from conch.memory.cuda import find_driver
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.device import gpu
from conch.types.dtype import BF16, BYTES
from conch.types.error import unsupported
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger(__name__)


class OnnxBackend:
    """ONNX files on ONNX Runtime.

    A file that crashes the runtime's native code takes the server with it: that cannot be caught in a thread.
    """

    name = "onnxruntime"

    def on_gpus(self) -> bool:
        """See `backend.api.Accelerated`: not with the package for the CPU alone."""
        return "CUDAExecutionProvider" in runtime().get_available_providers()

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        if not needs_file(config):
            return
        path = find_model(files.version_directory, config.default_model_filename, config.name)
        signature = read_signature(config.name, peek(path))
        complete_config(config, signature, default_max_batch_size(self.name, host.settings))

    def load(self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats) -> OnnxModel:
        path = find_model(files.version_directory, config.default_model_filename, config.name)
        plan = plan_session(config, host.settings)
        runtime()
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        return OnnxModel(config, spec, path, plan, host, stats)


class OnnxModel:
    """One version. Its CPU instances share one session, hence one copy of the weights.

    Measured on 2 CPUs, CNN of 14 MB, two callers with one thread each: a shared session made 2626 img/s (batch of 1)
    and 4037 img/s (8), two sessions 2354 and 4008, one session with two threads 1565 and 3484.
    """

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, path: Path, plan: SessionPlan, host: Host, stats: ModelStats
    ) -> None:
        self._config = config
        self._spec = spec
        self._path = path
        self._plan = plan
        self._host = host
        self._stats = stats
        self._ragged = read_ragged(config, spec)
        self._cuts = may_cut(config) and self._ragged is None
        self._lock = threading.Lock()
        self._shared: tuple[Any, Signature] | None = None
        self._warned: set[str] = set()
        #: Whether any instance takes tensors of a GPU; an ensemble may then count on it.
        self._on_gpu = False

    def instance(self, placement: Placement) -> ThreadInstance:
        with self._lock:
            self._warn(placement)
            # On a GPU each session has a stream of its own, which is what lets instances overlap.
            if on_gpu(placement) or self._plan.shared is False:
                session, signature = self._open(placement, sharing=False)
            else:
                self._shared = self._shared or self._open(placement, sharing=True)
                session, signature = self._shared
        placed = self._placed(placement) if on_gpu(placement) else None
        made = OnnxInstance(
            self._spec, signature, session, run_options(self._plan), counters(self._stats, placement),
            self._ragged, placed, may_lie_elsewhere=self._on_gpu and placed is None,
        )  # fmt: skip
        if on_gpu(placement) or not self._cuts:
            return made
        return portioned(made, alone=self._computes_alone(placement))

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """See `backend.api.Staying`: strings cannot be bound to memory, nor can models that have any."""
        tensors = (*self._spec.inputs, *self._spec.outputs)
        if self._ragged is not None or any(each.datatype is BYTES for each in tensors) or find_driver() is None:
            return frozenset(), frozenset()
        return frozenset([each.name for each in self._spec.inputs]), frozenset([o.name for o in self._spec.outputs])

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self._shared = None

    def _open(self, placement: Placement, sharing: bool) -> tuple[Any, Signature]:
        """A session whose signature agrees with the config. Raises InferError."""
        name = self._config.name
        providers = choose_providers(self._config, self._plan, placement, runtime().get_available_providers())
        threads = plan_threads(self._plan, self._host.cpus, placement.instances, sharing)
        session = open_session(name, self._path, self._plan, threads, providers)
        signature = read_signature(name, session)
        check_config(with_hidden_entries(self._config), signature)
        self._refuse_mixture()
        return session, signature

    def _placed(self, placement: Placement) -> Placed | None:
        """The instance's GPU, where its tensors may lie there."""
        driver = find_driver()
        if driver is None or not any(self.device_tensors()):
            return None
        self._on_gpu = True
        return Placed(gpu(placement.device_id), "cuda", driver)

    def _computes_alone(self, placement: Placement) -> bool:
        """Whether the caller's thread does all of a run's work."""
        one = plan_threads(self._plan, self._host.cpus, placement.instances, sharing=False).intra == 1
        elsewhere = self._config.optimization.execution_accelerators.cpu_execution_accelerator
        return one and not self._plan.parallel and not elsewhere

    def _refuse_mixture(self) -> None:
        used = {each.datatype for each in (*self._spec.inputs, *self._spec.outputs)}
        if BF16 in used and BYTES in used:
            raise unsupported(
                f"unable to load model '{self._config.name}', TYPE_BF16 and TYPE_STRING tensors in one model are not "
                "supported by the onnxruntime backend",
                "cast the BF16 tensors to FP32 at the edge of the model",
            )

    def _warn(self, placement: Placement) -> None:
        for warning in unused_accelerators(self._config, self._plan, placement):
            if warning not in self._warned:
                self._warned.add(warning)
                _LOG.warning("%s", warning)
