"""What a config and a version folder ask of PyTorch: files told by content, parameters, and what is refused."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conch.backend.find import find_backend
from conch.backend.torch.complete import example
from conch.backend.torch.content import Artifact, Kind, find_artifact, keeps_state
from conch.backend.torch.parameters import plan_model, plan_threads
from conch.backend.torch.signature import Argument, Holds, Signature
from conch.backend.torch.trees import plain_name
from conch.backend.torch.types import check_types
from conch.config.pbtxt import parse_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import Code, InferError

SCRIPT = {"m/constants.pkl": "", "m/code/__torch__.py": "", "m/data.pkl": "", "m/version": "3"}
EXPORTED = {"m/archive_format": "pt2", "m/models/model.json": "{}", "m/data/weights/weight_0": ""}
PACKAGE = {"m/archive_format": "pt2", "m/data/aotinductor/model/a.so": ""}
WEIGHTS = {"m/data.pkl": "", "m/data/0": "", "m/version": "3"}


def config(text: str = "") -> ModelConfig:
    return text_format.Parse(f'name: "m" backend: "pytorch" {text}', ModelConfig())


def parameters(**values: str) -> ModelConfig:
    made = config()
    for key, value in values.items():
        made.parameters[key].string_value = value
    return made


def pack(path: Path, content: Mapping[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("content", "kind"), [(SCRIPT, Kind.SCRIPT), (EXPORTED, Kind.EXPORTED), (PACKAGE, Kind.PACKAGE)]
)
@pytest.mark.parametrize("name", ["model.pt", "model.pt2", "other.bin"])
def test_files_are_told_by_their_content(tmp_path: Path, content: Mapping[str, str], kind: Kind, name: str) -> None:
    """What a file is called does not say what it is."""
    path = pack(tmp_path / name, content)
    assert find_artifact(tmp_path, config(f'default_model_filename: "{name}"')) == Artifact(kind, path)


@pytest.mark.parametrize("weights", ["model.pt", "model.pth", "model.safetensors"])
@pytest.mark.parametrize("text", ["", 'default_model_filename: "model.pt"', 'runtime: "model.py"'])
def test_weights_belong_to_the_module_beside_them(tmp_path: Path, weights: str, text: str) -> None:
    """A file of weights beside model.py is that module's state, whatever of them the config names."""
    path = pack(tmp_path / weights, WEIGHTS)
    (tmp_path / "model.py").write_text("")
    assert find_artifact(tmp_path, config(text)) == Artifact(Kind.MODULE, tmp_path / "model.py", path)


def test_a_module_may_have_no_weights(tmp_path: Path) -> None:
    """model.py alone is a model, too."""
    (tmp_path / "net.py").write_text("")
    found = find_artifact(tmp_path, config('default_model_filename: "net.py"'))
    assert found == Artifact(Kind.MODULE, tmp_path / "net.py", None)


def test_torchscript_beside_a_python_file_is_served_as_it_is(tmp_path: Path) -> None:
    """A Python file beside TorchScript does not make it a module."""
    path = pack(tmp_path / "model.pt", SCRIPT)
    (tmp_path / "model.py").write_text("")
    assert find_artifact(tmp_path, config()) == Artifact(Kind.SCRIPT, path)


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    """A state_dict without a module is refused, and the hint says both ways out."""
    pack(tmp_path / "model.pt", WEIGHTS)
    with pytest.raises(InferError, match="holds weights alone, no model") as caught:
        find_artifact(tmp_path, config())
    assert "model.py" in caught.value.hint
    assert "torch.jit.script" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"x" * 100])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    """What no PyTorch wrote, or half of it, is refused in one sentence with the file's size."""
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InferError) as caught:
        find_artifact(tmp_path, config())
    assert caught.value.message == (
        f"failed to load model 'm': '{tmp_path / 'model.pt'}' is no PyTorch file, or only a part of one "
        f"({len(content)} bytes)"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Where there is no file, Triton's text says which was looked for."""
    with pytest.raises(InferError) as caught:
        find_artifact(tmp_path, config('default_model_filename: "net.pt"'))
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message == f"unable to find '{tmp_path / 'net.pt'}' for model instance 'm'"


@pytest.mark.parametrize(
    ("code", "keeps"),
    [
        ("    n = s.n\n    s.n = torch.add(n, 1)\n", True),
        ("    b = self.b\n    _0 = torch.add_(b, 1)\n", True),
        ("    b = self.b\n    _0 = torch.add(b, x)\n    _1 = torch.relu_(_0)\n", False),
    ],
)
def test_state_shows_in_the_code(tmp_path: Path, code: str, keeps: bool) -> None:
    """A TorchScript file that assigns to its module, or changes its values in place, keeps state."""
    assert keeps_state(pack(tmp_path / "model.pt", {**SCRIPT, "m/code/__torch__.py": code})) is keeps


def plan(made: ModelConfig, *, script: bool = True, worker: bool = False, **settings: str):  # type: ignore[no-untyped-def]
    return plan_model(made, settings, script=script, worker=worker)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("ON", True), ("1", True), ("False", False), ("0", False)])
def test_flags_are_read_as_triton_reads_them(text: str, value: bool) -> None:
    """true, on and 1, false, off and 0, in any case."""
    found = plan(parameters(DISABLE_OPTIMIZED_EXECUTION=text, INFERENCE_MODE=text, ENABLE_JIT_EXECUTOR=text))
    assert (found.optimized, found.inference_mode, found.jit_executor) == (not value, value, value)


def test_defaults_are_tritons() -> None:
    """Optimized execution, inference mode and cuDNN are on; nothing else is asked for."""
    found = plan(config())
    assert (found.optimized, found.inference_mode, found.cudnn, found.cache_cleaning) == (True, True, True, False)
    assert (found.sharing, found.compile, found.jit_switches, found.warnings) == (None, None, False, ())


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("INFERENCE_MODE", "maybe", "failed to convert 'maybe' to boolean"),
        ("INTRA_OP_THREAD_COUNT", "two", "failed to convert 'two' to integral number"),
        ("TORCH_COMPILE_OPTIONAL_PARAMETERS", "{", "is no JSON"),
        (
            "TORCH_COMPILE_OPTIONAL_PARAMETERS",
            '{"speed": 1}',
            r"an object of torch.compile's options, found \['speed'\]",
        ),
    ],
)
def test_values_that_mean_nothing_are_refused(key: str, text: str, message: str) -> None:
    """Triton's text says what could not be read, the hint which parameter it is."""
    with pytest.raises(InferError, match=message):
        plan(parameters(**{key: text}))


@pytest.mark.parametrize(
    ("key", "script", "worker", "why"),
    [
        ("ENABLE_TENSOR_FUSER", False, False, "it is for TorchScript"),
        ("TORCH_COMPILE_OPTIONAL_PARAMETERS", True, False, "it is for models in worker processes"),
        ("INTRA_OP_THREADS", True, False, "it is not one that the pytorch backend knows"),
        ("ENABLE_WEIGHT_SHARING", False, True, "each instance is a process of its own"),
    ],
)
def test_what_has_no_effect_is_warned_of(key: str, script: bool, worker: bool, why: str) -> None:
    """A parameter that does nothing for this kind of model gets a warning that names it."""
    value = "{}" if "COMPILE" in key else "1"
    (warning,) = plan(parameters(**{key: value}), script=script, worker=worker).warnings
    assert f"parameter '{key}' has no effect: {why}" in warning


def test_unknown_settings_are_warned_of() -> None:
    """--backend-config=pytorch,... has no settings of its own."""
    (warning,) = plan_model(
        config(), {"threads": "2", "default-max-batch-size": "4"}, script=True, worker=False
    ).warnings
    assert "'threads'" in warning


@pytest.mark.parametrize(("wanted", "cpus", "instances", "threads"), [("0", 8, 2, 4), ("3", 8, 2, 3), ("0", 2, 4, 1)])
def test_instances_share_the_cpus(wanted: str, cpus: int, instances: int, threads: int) -> None:
    """An instance has its share of the CPUs, or as many threads as the config says; 0 says nothing."""
    assert plan_threads(plan(parameters(INTRA_OP_THREAD_COUNT=wanted)), cpus, instances) == threads


@pytest.mark.parametrize("role", ["input", "output"])
def test_strings_have_one_dimension(role: str) -> None:
    """Tensors of strings with more than one dimension are refused in Triton's words."""
    text = f'max_batch_size: 4 {role} {{ name: "s" data_type: TYPE_STRING dims: 1 }}'
    with pytest.raises(InferError) as caught:
        check_types(config(text), worker=False)
    assert caught.value.message == f"Triton only supports 1 dimensional List of String as {role} for 's' for model 'm'"
    check_types(config(text.replace("dims: 1", "dims: 1 reshape {}")), worker=False)


def test_configs_to_paste_are_configs() -> None:
    """The config that is offered where a file knows too little can be read, and names the arguments of forward."""
    signature = Signature((Argument("words", Holds.STRINGS), Argument("x"), Argument("scale", required=False)))
    for kind in (Kind.SCRIPT, Kind.PACKAGE, Kind.MODULE):
        read = parse_text(example(config(), kind, signature if kind is Kind.SCRIPT else None), "config.pbtxt")
        assert [each.name for each in read.input] == (["words", "x"] if kind is Kind.SCRIPT else ["INPUT__0"])
        check_types(read, worker=False)


@pytest.mark.parametrize(
    ("path", "name"),
    [("RESULT", "OUTPUT__3"), ("RESULT[sum]", "sum"), ("RESULT[0]", "OUTPUT__3"), ("RESULT[a][0]", "OUTPUT__3")],
)
def test_results_are_called_by_their_keys(path: str, name: str) -> None:
    """The key of a dictionary's entry is a name; places in tuples are numbered as Triton does."""
    assert plain_name(path, 3, "OUTPUT") == name


def test_a_runtime_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """runtime: "model.py" is the only one, and others are named."""
    pack(tmp_path / "model.pt", WEIGHTS)
    with pytest.raises(InferError, match="is not one that the pytorch backend has"):
        find_artifact(tmp_path, config('runtime: "native.so"'))


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyTorch the error says what to install."""
    from conch.backend.torch import runtime

    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    runtime.runtime.cache_clear()
    try:
        with pytest.raises(InferError, match="unable to find backend library for backend 'pytorch'") as caught:
            runtime.runtime()
    finally:
        monkeypatch.undo()
        runtime.runtime.cache_clear()
    assert "pip install 'conch[torch]'" in caught.value.hint


def test_the_backend_is_found_without_importing_pytorch() -> None:
    """Only a model imports PyTorch, not the server."""
    assert find_backend("pytorch").name == "pytorch"


def test_settings_of_python_models_are_no_news() -> None:
    """Modules and packages run in workers, which have the Python backend's settings; only others are warned of."""
    settings = {"environments": "off", "stub-timeout-seconds": "9", "odd": "1"}
    for worker in (False, True):
        texts = plan_model(ModelConfig(name="m"), settings, script=False, worker=worker).warnings
        assert texts == (
            "model 'm': backend setting 'odd' is not one that the pytorch backend knows, it has no effect",
        )


def test_files_that_unpack_to_far_more_are_refused(tmp_path: Path) -> None:
    """Before anything is unpacked: the archive's own list says how much that would be."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/constants.pkl", b"x")
        archive.writestr("m/code/__torch__.py", b"\0" * (80 << 20))
    with pytest.raises(InferError, match=r"__torch__.py' in '.*' unpacks from [0-9]+ bytes to 83886080, at most"):
        find_artifact(tmp_path, config())


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_refused_or_told(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    """Whatever has become of an archive, there is one clear error or an answer, and nothing else escapes."""
    path = pack(tmp_path / "model.pt", {**SCRIPT, "m/code/__torch__.py": "    n = s.n\n    s.n = 1\n" * 9})
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[-1 - place % len(content)] = value
    path.write_bytes(content)
    keeps_state(path)
    with contextlib.suppress(InferError):
        find_artifact(tmp_path, config())
