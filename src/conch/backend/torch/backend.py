"""The `pytorch` backend: tells what a version holds, completes its config, and opens it where it is to run."""

from __future__ import annotations

import logging
import threading
from typing import Final

from conch.backend.api import Host, LoadedModel, ModelFiles, Placement, ThreadInstance
from conch.backend.complete import needs_file
from conch.backend.counters import counters
from conch.backend.portions import portioned
from conch.backend.ragged import read_ragged
from conch.backend.torch.complete import complete_config, says_too_little
from conch.backend.torch.content import Artifact, Kind, find_artifact, keeps_state
from conch.backend.torch.device import Cpu, Gpu, check_device, device_name
from conch.backend.torch.exported import read_signature as read_exported
from conch.backend.torch.instance import TorchInstance
from conch.backend.torch.naming import Bindings, Wanted, bind
from conch.backend.torch.parameters import TorchPlan, plan_model, plan_threads
from conch.backend.torch.program import ExportedProgram, Program, ScriptProgram, open_exported, open_script
from conch.backend.torch.runtime import release_gpus, runtime, settle_process
from conch.backend.torch.script import read_signature as read_script
from conch.backend.torch.signature import Signature
from conch.backend.torch.types import check_types
from conch.backend.torch.workers import WorkerModel
from conch.config.cut_batches import may_cut
from conch.config.sequence_tensors import hidden_inputs, hidden_outputs
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.dtype import BYTES
from conch.types.error import InferError
from conch.types.model import ModelSpec

_LOG: Final = logging.getLogger(__name__)


class TorchBackend:
    """TorchScript and exported programs run in the server: they release the GIL. AOTInductor packages, which hold it
    (measured: another thread ran once per call, as often as it liked beside TorchScript), and Python modules, which are
    somebody's code, run in worker processes.
    """

    name = "pytorch"

    def on_gpus(self) -> bool:
        """See `backend.api.Accelerated`."""
        try:
            return bool(runtime().cuda.is_available())
        except InferError:
            # The load says what is missing, if it needs PyTorch here at all.
            return False

    def complete(self, config: ModelConfig, files: ModelFiles, host: Host) -> None:
        artifact = find_artifact(files.version_directory, config)
        _settle_instances(config, artifact)
        if not needs_file(config):
            return
        if artifact.kind is not Kind.EXPORTED:
            raise says_too_little(config, artifact.kind, _peek(config, artifact))
        runtime()
        program = open_exported(config.name, artifact.path)
        complete_config(config, read_exported(config.name, program), host.settings)

    def load(
        self, config: ModelConfig, spec: ModelSpec, files: ModelFiles, host: Host, stats: ModelStats
    ) -> LoadedModel:
        artifact = find_artifact(files.version_directory, config)
        worker = artifact.kind in (Kind.PACKAGE, Kind.MODULE)
        plan = plan_model(config, host.settings, script=artifact.kind is Kind.SCRIPT, worker=worker)
        for warning in plan.warnings:
            _LOG.warning("%s", warning)
        check_types(config, worker=worker)
        if worker:
            return WorkerModel(config, spec, files, host, stats, artifact, plan, _wanted_names(config))
        runtime()
        settle_process(plan, config.name)
        return TorchModel(config, spec, artifact, host, stats, plan)


class TorchModel:
    """One version in the server's process. Instances share a program that keeps no state, hence one copy of weights."""

    def __init__(
        self, config: ModelConfig, spec: ModelSpec, artifact: Artifact, host: Host, stats: ModelStats, plan: TorchPlan
    ) -> None:
        self._config = config
        self._spec = spec
        self._artifact = artifact
        self._host = host
        self._stats = stats
        self._plan = plan
        self._ragged = read_ragged(config, spec)
        self._cuts = may_cut(config) and self._ragged is None
        self._wanted = _wanted_names(config)
        self._lock = threading.Lock()
        self._shared: dict[str | None, Program] = {}
        self._warned: set[str] = set()
        #: Whether any instance has been made on a GPU; an ensemble may then count on it.
        self._on_gpu = False

    def instance(self, placement: Placement) -> ThreadInstance:
        check_device(self._config.name, placement)
        with self._lock:
            name = device_name(placement)
            program = self._shared.get(name)
            if program is None:
                program = self._open(name)
                if self._shares(program.signature, placement):
                    self._shared[name] = program
            bindings = bind(self._wanted, program.signature)
            self._warn(bindings, name)
        threads = plan_threads(self._plan, self._host.cpus, placement.instances)
        device: Cpu | Gpu = Cpu()
        if name is not None and name != "cpu":
            device = Gpu(placement.device_id, self._plan, self._host.pinned)
            self._on_gpu = True
        made = TorchInstance(
            self._spec, program, bindings, device, self._plan, threads, counters(self._stats, placement),
            self._ragged, may_lie_elsewhere=self._on_gpu and device.carrier is None,
        )  # fmt: skip
        if name != "cpu" or not self._cuts:
            return made
        return portioned(made, alone=threads == 1)

    def device_tensors(self) -> tuple[frozenset[str], frozenset[str]]:
        """See `backend.api.Staying`: all but strings, and what `batch_output` cuts in its own way."""
        scattered = {} if self._ragged is None else self._ragged.scattered
        return (
            frozenset([each.name for each in self._spec.inputs if each.datatype is not BYTES]),
            frozenset(
                [each.name for each in self._spec.outputs if each.datatype is not BYTES and each.name not in scattered]
            ),
        )

    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self._shared.clear()
        release_gpus()

    def _open(self, device: str | None) -> Program:
        name, path = self._config.name, self._artifact.path
        if self._artifact.kind is Kind.EXPORTED:
            return ExportedProgram(name, path, device)
        return ScriptProgram(name, path, device, optimized=self._plan.optimized)

    def _shares(self, signature: Signature, placement: Placement) -> bool:
        if self._plan.sharing is not None:
            return self._plan.sharing
        if signature.keeps_state and placement.instances > 1 and "state" not in self._warned:
            self._warned.add("state")
            _LOG.warning(
                "model '%s' changes its own values as it runs, and each of its %d instances has values of its own: "
                "write instance_group [ { count: 1 } ] if requests have to see what others left",
                self._config.name, placement.instances,
            )  # fmt: skip
        return not signature.keeps_state

    def _warn(self, bindings: Bindings, device: str | None) -> None:
        texts = list(bindings.warnings)
        if device == "cpu":
            asked = {"DISABLE_CUDNN": not self._plan.cudnn, "ENABLE_CACHE_CLEANING": self._plan.cache_cleaning}
            texts += [
                f"model '{self._config.name}': parameter '{name}' has no effect on a CPU"
                for name, wish in asked.items()
                if wish
            ]
        for text in texts:
            if text not in self._warned:
                self._warned.add(text)
                _LOG.warning("%s", text)


def _wanted_names(config: ModelConfig) -> Wanted:
    states = [each.input_name for each in config.sequence_batching.state]
    controls = [each.name for each in config.sequence_batching.control_input]
    made = [name for each in config.batch_input for name in each.target_name]
    hidden = hidden_inputs(config)
    return Wanted(
        config.name,
        tuple([each.name for each in config.input if each.name not in hidden]),
        tuple([each.name for each in config.output]),
        (*controls, *states, *made),
        tuple(states),
        tuple(sorted(hidden_outputs(config))),
    )


def _peek(config: ModelConfig, artifact: Artifact) -> Signature | None:
    """What TorchScript says of its arguments, for the config to paste."""
    if artifact.kind is not Kind.SCRIPT:
        return None
    runtime()
    return read_script(open_script(config.name, artifact.path, "cpu"))


def _settle_instances(config: ModelConfig, artifact: Artifact) -> None:
    """One instance where the config does not say how many, and two would differ in state or cost another process."""
    if artifact.kind in (Kind.SCRIPT, Kind.EXPORTED) and not (
        artifact.kind is Kind.SCRIPT and keeps_state(artifact.path)
    ):
        return
    if not config.instance_group:
        # The implicit group has the model's own name.
        config.instance_group.add(name=config.name)
    for group in config.instance_group:
        group.count = group.count or 1
