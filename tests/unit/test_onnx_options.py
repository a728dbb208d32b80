"""What config parameters, settings and accelerators make of an ONNX Runtime session."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.backend.api import Placement
from conch.backend.complete import default_max_batch_size
from conch.backend.onnx import OnnxBackend
from conch.backend.onnx.backend import OnnxModel
from conch.backend.onnx.options import SessionPlan, plan_session, plan_threads
from conch.backend.onnx.providers import check_active, choose_providers, unused_accelerators
from conch.observe.stats import ModelStats
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError
from support.onnx_models import identity, make_host, make_spec, serve, write

CPU = Placement("m_0_0", "CPU")
GPU = Placement("m_0_0", "GPU", device_id=1)
ALL = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider")


def make_config(parameters: dict[str, str] | None = None, text: str = "") -> ModelConfig:
    config = text_format.Parse('name: "m" ' + text, ModelConfig())
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = value
    return config


def accelerator(where: str, name: str, **parameters: str) -> str:
    pairs = " ".join([f'parameters {{ key: "{k}" value: "{v}" }}' for k, v in parameters.items()])
    return f'optimization {{ execution_accelerators {{ {where}_execution_accelerator {{ name: "{name}" {pairs} }} }} }}'


class TestPlan:
    def test_nothing_said(self) -> None:
        """Without parameters the plan is the default one, without warnings."""
        assert plan_session(make_config(), {}) == SessionPlan()

    def test_every_parameter_has_its_place(self) -> None:
        """Each parameter of Triton's ONNX Runtime backend sets its part of the plan."""
        parameters = {
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "2",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "true",
            "memory.enable_memory_arena_shrinkage": "cpu:0",
            "session.use_device_allocator_for_initializers": "1",
            "share_session_between_instances": "false",
            "cudnn_conv_algo_search": "1",
            "gpu_mem_limit": "1024",
            "arena_extend_strategy": "1",
            "do_copy_in_default_stream": "0",
        }
        assert plan_session(make_config(parameters), {}) == SessionPlan(
            parallel=True,
            intra_op_threads=3,
            inter_op_threads=2,
            memory_arena=False,
            memory_pattern=True,
            shared=False,
            session_entries={"session.use_device_allocator_for_initializers": "1"},
            run_entries={"memory.enable_memory_arena_shrinkage": "cpu:0"},
            cuda_options={
                "cudnn_conv_algo_search": "HEURISTIC",
                "gpu_mem_limit": "1024",
                "arena_extend_strategy": "kSameAsRequested",
                "do_copy_in_default_stream": "0",
            },
        )

    @pytest.mark.parametrize(
        ("level", "name"),
        [(-1, "ORT_ENABLE_BASIC"), (0, "ORT_ENABLE_ALL"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
    )
    def test_graph_level(self, level: int, name: str) -> None:
        """optimization.graph.level has Triton's meaning."""
        text = f"optimization {{ graph {{ level: {level} }} }}"
        assert plan_session(make_config(text=text), {}).graph_level == name

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("execution_mode", "2", "Expected values for execution_mode are 0 or 1 but got 2"),
            ("intra_op_thread_count", "-1", "parameter 'intra_op_thread_count' of model 'm' is '-1'"),
            ("inter_op_thread_count", "many", "expected a whole number >= 0"),
            ("enable_mem_arena", "yes", "expected true, false, 1 or 0"),
            ("cudnn_conv_algo_search", "9", "unsupported cudnn_conv_algo_search value '9' is requested"),
            ("arena_extend_strategy", "9", "unsupported arena_extend_strategy value '9' is requested"),
            ("gpu_mem_limit", "1GB", "expected a whole number >= 0"),
        ],
    )
    def test_wrong_values(self, key: str, value: str, message: str) -> None:
        """A value out of range is refused with what was expected."""
        with pytest.raises(InferError) as caught:
            plan_session(make_config({key: value}), {})
        assert caught.value.code is Code.INVALID_ARG
        assert message in caught.value.message

    def test_without_effect(self) -> None:
        """What has no effect is warned of by name."""
        text = "optimization { graph { level: 7 } }"
        config = make_config({"typo_count": "1", "inter_op_thread_count": "4"}, text)
        warnings = plan_session(config, {"typo-setting": "1"}).warnings
        assert len(warnings) == 4
        for part, warning in zip(
            ("'typo_count'", "'typo-setting'", "level 7", "'inter_op_thread_count'"), warnings, strict=True
        ):
            assert part in warning

    def test_settings_are_the_default(self) -> None:
        """--backend-config gives the threads of models that do not say."""
        settings = {"intra_op_thread_count": "6"}
        assert plan_session(make_config(), settings).intra_op_threads == 6
        assert plan_session(make_config({"intra_op_thread_count": "2"}), settings).intra_op_threads == 2

    def test_global_pool(self) -> None:
        """The process-wide pool has the command line's size; a model's own is warned of."""
        settings = {"enable-global-threadpool": "1", "intra_op_thread_count": "6"}
        plan = plan_session(make_config({"intra_op_thread_count": "2"}), settings)
        assert plan.global_threads
        assert plan.intra_op_threads == 6
        assert "'intra_op_thread_count' has no effect" in plan.warnings[0]


class TestThreads:
    def test_two_instances_on_two_cpus(self) -> None:
        """The default on two CPUs: each of two instances computes in its own thread only."""
        assert plan_threads(SessionPlan(), cpus=2, instances=2, sharing=True).intra == 1

    def test_one_instance_has_all(self) -> None:
        """One instance computes on all CPUs."""
        assert plan_threads(SessionPlan(), cpus=8, instances=1, sharing=True).intra == 8

    @settings(deadline=None)
    @given(st.integers(1, 256), st.integers(1, 64), st.one_of(st.none(), st.integers(1, 32)))
    def test_never_more_threads_than_asked(self, cpus: int, instances: int, asked: int | None) -> None:
        """Callers and pool together are as many as the instances' shares: at most the CPUs, unless it was said."""
        plan = SessionPlan(intra_op_threads=asked)
        shared = plan_threads(plan, cpus, instances, sharing=True).intra - 1 + instances
        alone = plan_threads(plan, cpus, instances, sharing=False).intra * instances
        assert shared == alone
        assert shared == instances * asked if asked else shared <= max(cpus, instances)


class TestProviders:
    def choose(self, text: str = "", placement: Placement = CPU, available: tuple[str, ...] = ALL) -> list[str]:
        config = make_config(text=text)
        return [name for name, _ in choose_providers(config, plan_session(config, {}), placement, available)]

    def test_in_order(self) -> None:
        """Accelerators come before their device's provider, the CPU last."""
        assert self.choose() == ["CPUExecutionProvider"]
        assert self.choose(accelerator("cpu", "openvino")) == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
        assert self.choose(accelerator("gpu", "tensorrt"), GPU) == [
            "TensorrtExecutionProvider",
            "CUDAExecutionProvider",
            "CPUExecutionProvider",
        ]

    @pytest.mark.parametrize(("where", "placement"), [("cpu", CPU), ("gpu", GPU)])
    def test_unknown(self, where: str, placement: Placement) -> None:
        """An accelerator that Triton does not know either has its text."""
        with pytest.raises(InferError) as caught:
            self.choose(accelerator(where, "warp"), placement)
        assert caught.value.message == "unknown Execution Accelerator 'warp' is requested"

    @pytest.mark.parametrize(
        ("text", "placement", "missing"),
        [
            ("", GPU, "CUDAExecutionProvider"),
            (accelerator("cpu", "openvino"), CPU, "OpenVINOExecutionProvider"),
            (accelerator("gpu", "tensorrt"), GPU, "TensorrtExecutionProvider"),
        ],
    )
    def test_missing(self, text: str, placement: Placement, missing: str) -> None:
        """A provider that this installation lacks is an error, not a silent fall back to the CPU."""
        with pytest.raises(InferError) as caught:
            self.choose(text, placement, ("CPUExecutionProvider",))
        assert caught.value.code is Code.UNAVAILABLE
        assert f"needs the {missing}" in caught.value.message
        assert "pip install" in caught.value.hint

    def test_dropped(self) -> None:
        """A provider that is installed and does not start is an error too."""
        with pytest.raises(InferError, match="could not start the CUDAExecutionProvider"):
            check_active("m", [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})], ["CPUExecutionProvider"])

    def test_options(self) -> None:
        """Triton's option names become the provider's, and the device is that of the instance."""
        text = accelerator("gpu", "tensorrt", precision_mode="FP16", max_workspace_size_bytes="5", trt_dla_core="1")
        config = make_config({"gpu_mem_limit": "7"}, text)
        tensorrt, cuda, _ = choose_providers(config, plan_session(config, {}), GPU, ALL)
        assert tensorrt[1] == {
            "trt_fp16_enable": "1", "trt_max_workspace_size": "5", "trt_dla_core": "1", "device_id": "1",
        }  # fmt: skip
        assert cuda[1] == {"gpu_mem_limit": "7", "device_id": "1"}

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"precision_mode": "FP8"}, "unsupported precision mode 'FP8' is requested"),
            ({"speed": "11"}, "unknown parameter 'speed' is provided for TensorRT Execution Accelerator"),
        ],
    )
    def test_wrong_options(self, option: dict[str, str], message: str) -> None:
        """A TensorRT option that does not exist is refused."""
        with pytest.raises(InferError) as caught:
            self.choose(accelerator("gpu", "tensorrt", **option), GPU)
        assert caught.value.message == message

    def test_gpu_options_on_a_cpu(self) -> None:
        """What only a GPU could use is warned of when the instance is on a CPU."""
        config = make_config({"gpu_mem_limit": "7"}, accelerator("gpu", "cuda"))
        warnings = unused_accelerators(config, plan_session(config, {}), CPU)
        assert ["accelerator 'cuda'" in warnings[0], "parameter 'gpu_mem_limit'" in warnings[1]] == [True, True]


class TestSessions:
    def instances(self, path: Path, parameters: dict[str, str], count: int = 2) -> list[object]:
        config = make_config({"conch_cut_batches": "no", **parameters})
        host = make_host({}, cpus=4)
        files = write(path, identity())
        OnnxBackend().complete(config, files, host)
        model = OnnxBackend().load(config, make_spec(config), files, host, ModelStats())
        return [model.instance(Placement(f"m_0_{n}", "CPU", instances=count))._session for n in range(count)]

    def test_shared(self, tmp_path: Path) -> None:
        """Instances on a CPU share one session, sized for all of them."""
        first, second = self.instances(tmp_path, {})
        assert first is second
        assert first.get_session_options().intra_op_num_threads == 3  # type: ignore[attr-defined]

    def test_not_shared(self, tmp_path: Path) -> None:
        """share_session_between_instances: false gives each instance its own."""
        first, second = self.instances(tmp_path, {"share_session_between_instances": "false"})
        assert first is not second
        assert first.get_session_options().intra_op_num_threads == 2  # type: ignore[attr-defined]

    def test_options_arrive(self, tmp_path: Path) -> None:
        """Options of the plan are those of the session."""
        parameters = {"enable_mem_pattern": "0", "enable_mem_arena": "0", "session.set_denormal_as_zero": "1"}
        options = self.instances(tmp_path, parameters)[0].get_session_options()  # type: ignore[attr-defined]
        assert not options.enable_mem_pattern
        assert not options.enable_cpu_mem_arena
        assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"

    def test_arena_shrinkage_runs(self, tmp_path: Path) -> None:
        """The one parameter that belongs to runs is given to them."""
        parameters = {"memory.enable_memory_arena_shrinkage": "cpu:0", "conch_cut_batches": "no"}
        instance = serve(tmp_path, identity(), make_config(parameters)).instance
        assert instance._options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"

    def test_warnings_are_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A parameter without effect is named in the log, once per load."""
        with caplog.at_level(logging.WARNING, logger="conch"):
            self.instances(tmp_path, {"typo": "1", "gpu_mem_limit": "1"})
        assert len(caplog.records) == 2

    def test_process_wide_pool(self, tmp_path: Path) -> None:
        """With enable-global-threadpool sessions use one pool of the process: the first load sizes it, others warn."""
        code = """
import logging, pathlib, sys
import numpy as np
from support.onnx_models import identity, serve
logging.basicConfig(stream=sys.stdout, format="%(message)s")
for number, threads in enumerate(["2", "2", "3"]):
    settings = {"enable-global-threadpool": "true", "intra_op_thread_count": threads}
    served = serve(pathlib.Path(sys.argv[1], str(number)), identity(), settings=settings)
    print(served.run(served.request({"x": np.ones((1, 2), np.float32)}))[0]["y"].shape)
"""
        place = str(Path(__file__).parents[1])
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": place},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.splitlines() == [
            "(1, 2)",
            "(1, 2)",
            "the process-wide ONNX Runtime pool has (2, 0) threads already, (3, 0) has no effect",
            "(1, 2)",
        ]


@pytest.mark.parametrize("number", ["5000", "10000000000"])
def test_more_threads_than_any_machine_has_are_refused(number: str) -> None:
    """At load, whoever asks for them, before ONNX Runtime starts as many."""
    with pytest.raises(InferError, match=f"'intra_op_thread_count' of model 'm' is '{number}', expected at most 4096"):
        plan_session(make_config({"intra_op_thread_count": number}), {})
    with pytest.raises(InferError, match=f"backend setting 'inter_op_thread_count' is '{number}', expected at most"):
        plan_session(make_config(), {"inter_op_thread_count": number})


@pytest.mark.parametrize("text", ["9" * 10, "9" * 5000])
def test_a_default_batch_size_beyond_a_config_is_refused(text: str) -> None:
    with pytest.raises(InferError, match=r"backend setting 'default-max-batch-size' is '9+', expected a whole number"):
        default_max_batch_size("onnxruntime", {"default-max-batch-size": text})


@pytest.mark.parametrize(
    ("parameters", "text", "alone"),
    [
        ({"intra_op_thread_count": "1"}, "", True),
        ({"intra_op_thread_count": "2"}, "", False),
        ({"intra_op_thread_count": "1", "execution_mode": "1"}, "", False),
        ({"intra_op_thread_count": "1"}, accelerator("cpu", "openvino"), False),
    ],
)
def test_runs_cost_the_time_of_who_computes_them(
    tmp_path: Path, parameters: dict[str, str], text: str, alone: bool
) -> None:
    """A thread's own time says nothing of a run whose operators are on other threads."""
    config = make_config(parameters, text)
    model = OnnxModel(config, make_spec(config), tmp_path, plan_session(config, {}), make_host({}), ModelStats())
    assert model._computes_alone(CPU) is alone
