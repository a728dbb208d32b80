"""Each of Triton's parameters for PyTorch, and sequences and ragged batches, shown by what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.backend.api import ModelFiles, Placement
from conch.config.sequence_tensors import with_hidden_tensors
from conch.config.spec import model_spec
from conch.observe.stats import ModelStats
from conch.types.error import Code, InferError
from conch.types.tensor import Tensor, to_numpy

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'conch[torch]'")

from conch.backend.torch import program as program_module  # noqa: E402
from conch.backend.torch import runtime as runtime_module  # noqa: E402
from conch.backend.torch.backend import TorchBackend  # noqa: E402
from conch.backend.torch.program import ScriptProgram, open_script  # noqa: E402
from support.onnx_models import Served, make_host  # noqa: E402
from support.torch_models import add_sub, config, exported, script, serve  # noqa: E402

ONE = """
  max_batch_size: 8
  input { name: "x" data_type: TYPE_FP32 dims: 2 }
  output { name: "y" data_type: TYPE_FP32 dims: 2 }"""
X = np.array([[1, 2]], np.float32)


def parameter(**values: str) -> str:
    return "".join(
        f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )


def ask(served: Served, **inputs: np.ndarray[Any, Any]) -> dict[str, list[Any]]:
    answer = served.run(served.request(inputs))[0]
    assert isinstance(answer, dict), answer
    return {name: values(each).tolist() for name, each in answer.items()}


def values(tensor: Tensor) -> np.ndarray[Any, Any]:
    return to_numpy(tensor.datatype, tensor.shape, tensor.data)


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Sums(torch.nn.Module):
    """An implicit state: the sum so far."""

    def forward(self, x: torch.Tensor, start: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.where(start > 0, x, x + state)
        return total * 10, total


class Lengths(torch.nn.Module):
    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.stack([part.sum() for part in torch.tensor_split(x, ends[:-1].long())])


def program(served: Served) -> Any:
    return served.instance._program


@pytest.mark.parametrize(("value", "frozen"), [("false", True), ("true", False)])
def test_optimized_execution_folds_the_weights(tmp_path: Path, value: str, frozen: bool) -> None:
    """Optimized TorchScript has its weights in its graph; DISABLE_OPTIMIZED_EXECUTION leaves the file as it is."""
    served = serve(tmp_path, script(Linear().eval()), ONE + parameter(DISABLE_OPTIMIZED_EXECUTION=value))
    assert (not list(program(served)._module.parameters())) is frozen
    plain = open_script("m", tmp_path / "1/model.pt", "cpu")
    torch.testing.assert_close(torch.tensor(ask(served, x=X)["y"]), plain(torch.tensor(X)))


def test_what_cannot_run_optimized_runs_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the optimized form fails at its first run and the file does not, the file is served and the log says so."""
    served = serve(tmp_path, script(Linear().eval()), ONE)
    expected = ask(served, x=X)

    def broken(*_: Any) -> Any:
        raise RuntimeError("a pass made nonsense")

    ours: ScriptProgram = program(served)
    ours._module, ours._doubtful = broken, True
    assert ask(served, x=X) == expected
    assert "cannot run with optimized execution, it is served without: a pass made nonsense" in caplog.text


def test_the_file_is_read_once_more_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests fail in both forms before one succeeds."""
    ours: ScriptProgram = program(serve(tmp_path, script(Linear().eval()), ONE))
    read: list[int] = []
    failing = [True, True, False]

    def nonsense(*_: Any) -> Any:
        raise RuntimeError("a pass made nonsense")

    def plain(x: Any) -> Any:
        if failing.pop(0):
            raise RuntimeError("a bad request")
        return x

    def opened(*_: Any) -> Any:
        read.append(1)
        return plain

    monkeypatch.setattr(program_module, "open_script", opened)
    ours._module, ours._doubtful = nonsense, True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a bad request"):
            ours({0: torch.tensor(X)}, {"x": 0})
    assert ours({0: torch.tensor(X)}, {"x": 0})[0].tolist() == X.tolist()
    assert read == [1]


@pytest.mark.parametrize(("value", "added"), [("true", 1), ("false", 0)])
def test_inference_mode_is_on_unless_told(tmp_path: Path, value: str, added: int) -> None:
    """INFERENCE_MODE decides between inference mode and no_grad."""
    asked = parameter(INFERENCE_MODE=value, DISABLE_OPTIMIZED_EXECUTION="true")

    class Traced(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    served = serve(tmp_path, script(Traced().eval()), ONE + asked)
    seen: list[bool] = []
    inner = program(served)._module

    def watched(*given: Any) -> Any:
        seen.append(torch.is_inference_mode_enabled())
        assert not torch.is_grad_enabled()
        return inner(*given)

    program(served)._module = watched
    ask(served, x=X)
    assert seen == [bool(added)]


def test_switches_of_torchscript_are_turned_before_a_run(tmp_path: Path) -> None:
    """ENABLE_JIT_EXECUTOR, ENABLE_JIT_PROFILING and ENABLE_TENSOR_FUSER reach PyTorch's switches."""
    internals = torch._C
    before = (
        internals._jit_set_profiling_executor(True),
        internals._jit_set_profiling_mode(True),
        internals._jit_texpr_fuser_enabled(),
    )
    wishes = parameter(ENABLE_JIT_EXECUTOR="false", ENABLE_JIT_PROFILING="false", ENABLE_TENSOR_FUSER="false")
    try:
        ask(serve(tmp_path, script(Linear().eval()), ONE + wishes), x=X)
        assert internals._jit_texpr_fuser_enabled() is False
        assert internals._jit_set_profiling_executor(before[0]) is False
        assert internals._jit_set_profiling_mode(before[1]) is False
    finally:
        internals._jit_set_profiling_executor(before[0])
        internals._jit_set_profiling_mode(before[1])
        internals._jit_set_texpr_fuser_enabled(before[2])
        runtime_module._switched.clear()


def test_the_first_model_sets_the_threads_between_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """INTER_OP_THREAD_COUNT sizes one pool for the process: another number later is warned of, as in Triton ignored."""
    said: list[int] = []
    monkeypatch.setattr(runtime_module, "_inter_op", [])
    monkeypatch.setattr(torch, "set_num_interop_threads", said.append)
    monkeypatch.setattr(torch, "get_num_interop_threads", lambda: said[0])
    for number in ("3", "3", "5"):
        serve(tmp_path / number, script(Linear().eval()), ONE + parameter(INTER_OP_THREAD_COUNT=number))
    assert said == [3]
    (warning,) = [each.message for each in caplog.records if "INTER_OP" in each.message]
    assert "has no effect: PyTorch has 3 threads between operators already" in warning


def loaded(directory: Path, text: str) -> list[Any]:
    """The programs of two instances."""
    parsed = config(text)
    parsed.name, parsed.backend, parsed.default_model_filename = "m", "pytorch", "model.pt"
    spec = with_hidden_tensors(model_spec(parsed, 1), parsed)
    model = TorchBackend().load(parsed, spec, ModelFiles(directory, 1), make_host({}), ModelStats())
    return [model.instance(Placement(f"m_0_{n}", "CPU", instances=2))._program for n in range(2)]  # type: ignore[union-attr]


@pytest.mark.parametrize(("wish", "shared"), [({}, True), ({"ENABLE_WEIGHT_SHARING": "false"}, False)])
def test_instances_share_weights_that_nothing_changes(tmp_path: Path, wish: dict[str, str], shared: bool) -> None:
    """Instances of a model without state share one copy, unless ENABLE_WEIGHT_SHARING says no."""
    serve(tmp_path, script(Linear().eval()), ONE)
    first, second = loaded(tmp_path, ONE + parameter(**wish))
    assert (first is second) is shared


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return x + self.count


def test_instances_with_state_have_copies_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that changes its own values is opened for each instance, with a warning; ENABLE_WEIGHT_SHARING joins."""
    serve(tmp_path, script(Counter().eval()), ONE)
    first, second = loaded(tmp_path, ONE)
    assert first is not second
    assert "each of its 2 instances has values of its own" in caplog.text
    first, second = loaded(tmp_path, ONE + parameter(ENABLE_WEIGHT_SHARING="true"))
    assert first is second


@pytest.mark.parametrize("name", ["DISABLE_CUDNN", "ENABLE_CACHE_CLEANING"])
def test_wishes_for_gpus_are_warned_of_on_cpus(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """What only a GPU has is named in a warning."""
    serve(tmp_path, script(Linear().eval()), ONE + parameter(**{name: "true"}))
    assert f"parameter '{name}' has no effect on a CPU" in caplog.text


def test_training_mode_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A module that was saved in training mode runs in it, as in Triton, and the log says how to save it."""
    serve(tmp_path, script(Linear().train()), ONE)
    assert "call model.eval() before saving" in caplog.text


def test_weights_that_want_gradients_can_be_served(tmp_path: Path) -> None:
    """Called first without inference mode and then with it, a module answers both times."""
    serve(tmp_path, script(Linear().eval()), ONE)
    plain = serve(tmp_path, lambda path: None, ONE + parameter(INFERENCE_MODE="false"))
    inference = serve(tmp_path, lambda path: None, ONE)
    assert ask(plain, x=X) == ask(inference, x=X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """KIND_GPU without a GPU is one sentence with what to write instead."""
    with pytest.raises(InferError) as caught:
        serve(tmp_path, script(Linear().eval()), ONE, placement=Placement("m_0_0", "KIND_GPU", 0))
    assert caught.value.code is Code.UNAVAILABLE
    assert "instance 'm_0_0' (KIND_GPU) needs GPU 0 and this PyTorch" in caught.value.message
    assert "KIND_CPU" in caught.value.hint


def test_kind_model_leaves_the_place_to_the_model(tmp_path: Path) -> None:
    """KIND_MODEL opens the file where it says, and leaves it as it is."""
    served = serve(tmp_path, script(Linear().eval()), ONE, placement=Placement("m_0_0", "KIND_MODEL"))
    assert list(program(served)._module.parameters())
    assert len(ask(served, x=X)["y"]) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
@pytest.mark.parametrize("kind", ["script", "exported"])
def test_gpus_give_what_cpus_give(tmp_path: Path, kind: str) -> None:
    """On a GPU, through pinned memory and a stream of the instance's own, the answers agree to 1e-3."""
    rows = torch.export.Dim("rows", min=1, max=64)
    model = Linear().eval()
    write = script(model) if kind == "script" else exported(model, (torch.zeros(2, 2),), {"x": {0: rows}})
    text = ONE.replace('"y"', '"OUTPUT__0"')
    on_cpu = serve(tmp_path, write, text)
    on_gpu = serve(tmp_path, write, text, placement=Placement("m_0_0", "KIND_GPU", 0, instances=2))
    first, second = ask(on_cpu, x=X)["OUTPUT__0"], ask(on_gpu, x=X)["OUTPUT__0"]
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def test_states_of_sequences_are_arguments_and_results(tmp_path: Path) -> None:
    """Controls and implicit states go to the arguments that their names or numbers say."""
    text = """
      max_batch_size: 4
      input { name: "x__0" data_type: TYPE_FP32 dims: 1 }
      output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 1 }
      sequence_batching {
        control_input { name: "start__1" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [0, 1] } }
        state { input_name: "old__2" output_name: "new__1" data_type: TYPE_FP32 dims: 1 }
      }"""
    served = serve(tmp_path, script(Sums().eval()), text)
    given = {"x__0": np.array([[3]], np.float32), "start__1": np.array([[0]], np.float32), "old__2": X[:, :1]}
    assert ask(served, **given) == {"OUTPUT__0": [[40]], "new__1": [[4]]}


def test_ragged_batches_are_computed(tmp_path: Path) -> None:
    """Requests of different lengths share a run, with an input that says where each ends."""
    text = """
      max_batch_size: 8
      input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }
      output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
      batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ends"
        data_type: TYPE_FP32 source_input: "x" }"""
    served = serve(tmp_path, script(Lengths().eval()), text)
    requests = [served.request({"x": np.full((1, count), count, np.float32)}) for count in (2, 3)]
    answers = served.run(*requests)
    assert [values(each["y"]).tolist() for each in answers if isinstance(each, dict)] == [[[4]], [[9]]]


def test_the_instance_is_closed_once(tmp_path: Path) -> None:
    """A closed instance holds nothing of the model."""
    served = serve(
        tmp_path, script(add_sub()), ONE.replace('"x"', '"a"') + ' input { name: "b" data_type: TYPE_FP32 dims: 2 }'
    )
    served.instance.close()
    assert served.instance._program is None


def test_more_threads_than_any_machine_has_are_refused(tmp_path: Path) -> None:
    """At load, before PyTorch starts as many."""
    with pytest.raises(InferError, match="'INTRA_OP_THREAD_COUNT' of model 'm' is 100000, expected at most 4096 thr"):
        serve(tmp_path, script(Linear()), ONE + parameter(INTRA_OP_THREAD_COUNT="100000"))
