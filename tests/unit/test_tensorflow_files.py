"""TensorFlow's files as the server reads them, without TensorFlow: signatures, configs, and what is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conch.backend.api import Host, ModelFiles
from conch.backend.tensorflow import model_file
from conch.backend.tensorflow.backend import TensorFlowBackend
from conch.backend.tensorflow.model_file import read_graph, read_saved_model
from conch.backend.tensorflow.options import plan_tensorflow
from conch.backend.tensorflow.signature import check, check_graph
from conch.config.pbtxt import parse_text
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError
from support import tensorflow_models as tf

X = {"x": tf.info("in:0", tf.FLOAT, [-1, 4])}
Y = {"y": tf.info("out:0", tf.INT64, [-1])}
GRAPH = tf.node("a", "Placeholder", tf.FLOAT, [-1, 4]) + tf.node("w", "Const") + tf.node("b", "MatMul")
XY = (
    'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ] '
    'output [ { name: "y" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [] } } ] '
)
AB = (
    'input [ { name: "a" data_type: TYPE_FP32 dims: [ 4 ] } ] output [ { name: "b" data_type: TYPE_FP32 dims: [ 4 ] } ]'
)
MORE = '}, { name: "q" data_type: TYPE_FP32 dims: [ 1 ] } ] output'


def saved(root: Path, content: bytes | None = None) -> Path:
    folder = root / "m" / "1" / "model.savedmodel"
    folder.mkdir(parents=True)
    whole = tf.saved_model(tf.graph(["serve"], {"serving_default": tf.signature(X, Y)}))
    (folder / "saved_model.pb").write_bytes(whole if content is None else content)
    return folder


def frozen(root: Path, content: bytes = GRAPH) -> Path:
    path = root / "m" / "1" / "model.graphdef"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def config_of(text: str = "", platform: str = "tensorflow_savedmodel") -> ModelConfig:
    return parse_text(f'name: "m" backend: "tensorflow" platform: "{platform}" {text}', "config.pbtxt")


def completed(root: Path, text: str = "", **settings: str) -> ModelConfig:
    config = config_of(text)
    loop = asyncio.new_event_loop()
    try:
        named = {name.replace("_", "-"): value for name, value in settings.items()}
        TensorFlowBackend().complete(config, ModelFiles(root / "m", 1), Host(loop, named))
    finally:
        loop.close()
    return config


def text_of(act: Callable[[], object]) -> str:
    with pytest.raises(InferError) as caught:
        act()
    return f"{caught.value.message} | {caught.value.hint}"


def test_a_config_is_filled_in_from_the_signature(tmp_path: Path) -> None:
    """As for ONNX models: a batch size, a dynamic batcher, tensors without the batch dimension."""
    saved(tmp_path)
    config = completed(tmp_path)
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert (config.input[0].name, config.input[0].data_type, list(config.input[0].dims)) == ("x", 11, [4])
    assert (config.output[0].name, config.output[0].data_type, list(config.output[0].dims)) == ("y", 9, [1])
    assert list(config.output[0].reshape.shape) == []
    assert config.output[0].HasField("reshape")


def test_what_the_operator_wrote_wins(tmp_path: Path) -> None:
    """A batch size stays; entries with a name alone get type and dims; the default is a setting."""
    saved(tmp_path)
    config = completed(tmp_path, 'max_batch_size: 2 input [ { name: "x" } ]')
    assert config.max_batch_size == 2
    assert (config.input[0].data_type, list(config.input[0].dims)) == (11, [4])
    assert completed(tmp_path, default_max_batch_size="16").max_batch_size == 16
    assert completed(tmp_path, default_max_batch_size="1").WhichOneof("scheduling_choice") is None


def test_a_fixed_first_dimension_does_not_batch(tmp_path: Path) -> None:
    """Its whole shape is the client's, and a batch size is a contradiction."""
    fixed = tf.signature({"x": tf.info("in:0", tf.FLOAT, [2, 4])}, Y)
    saved(tmp_path, tf.saved_model(tf.graph(["serve"], {"serving_default": fixed})))
    config = completed(tmp_path)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 4])
    assert "does not support batching" in text_of(lambda: completed(tmp_path, "max_batch_size: 4"))


def test_an_unknown_rank_needs_a_config(tmp_path: Path) -> None:
    """With one it is served; nothing contradicts it."""
    unknown = tf.signature({"x": tf.info("in:0", tf.FLOAT, None)}, Y)
    folder = saved(tmp_path, tf.saved_model(tf.graph(["serve"], {"serving_default": unknown})))
    assert "input 'x' of its signature 'serving_default' has an unknown rank" in text_of(lambda: completed(tmp_path))
    config = config_of("max_batch_size: 4 " + XY)
    assert check(config, read_saved_model("m", folder, "", "")) == ([("x", "in:0")], [("y", "out:0")])


def test_which_signature_is_served(tmp_path: Path) -> None:
    """The one asked for; serving_default; else the first that TensorFlow does not keep for itself."""
    other = tf.signature({"z": tf.info("z:0", tf.STRING, [-1])}, Y)
    graph = tf.graph(["serve"], {"__saved_model_init_op": b"", "other": other, "serving_default": tf.signature(X, Y)})
    gpu = tf.graph(["serve", "gpu"], {"only": other})
    folder = saved(tmp_path, tf.saved_model(graph, gpu))
    assert read_saved_model("m", folder, "", "").signature == "serving_default"
    assert read_saved_model("m", folder, "", "other").inputs.keys() == {"z"}
    assert read_saved_model("m", folder, "gpu", "").signature == "only"
    assert read_saved_model("m", folder, "gpu", "").tags == ("serve", "gpu")
    assert "its signatures: other, serving_default" in text_of(lambda: read_saved_model("m", folder, "", "none"))
    assert "tags of its graphs: serve; serve, gpu" in text_of(lambda: read_saved_model("m", folder, "tpu", ""))


def test_graphs_of_other_tags_alone(tmp_path: Path) -> None:
    """Without `serve` the first graph is taken, as in Triton."""
    folder = saved(tmp_path, tf.saved_model(tf.graph(["train"], {"a": tf.signature(X, Y)})))
    assert read_saved_model("m", folder, "", "").tags == ("train",)


WHOLE = tf.saved_model(tf.graph(["serve"], {"serving_default": tf.signature(X, Y)}))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "cannot be read as a TensorFlow SavedModel: it is empty"),
        (b"this is no protobuf", "cannot be read as a TensorFlow SavedModel: "),
        (WHOLE[:-9], "cannot be read as a TensorFlow SavedModel: a field of "),
        (b"\x0a\xff", "cannot be read as a TensorFlow SavedModel: it ends within a number"),
        (tf.number(1, 1), "cannot be read as a TensorFlow SavedModel: it holds no graph"),
        (tf.saved_model(tf.graph(["serve"], {})), "the SavedModel has no signature to serve"),
        (tf.saved_model(tf.graph(["serve"], {"__saved_model_init_op": b""})), "has no signature to serve"),
    ],
)
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, text: str) -> None:
    """It names the model and says what is wrong."""
    folder = saved(tmp_path, content)
    said = text_of(lambda: read_saved_model("m", folder, "", ""))
    assert said.startswith("unable to load model 'm', ")
    assert text in said


def test_missing_files_are_named(tmp_path: Path) -> None:
    """The folder, and the form that is not read."""
    assert "is no SavedModel: it has no saved_model.pb" in text_of(lambda: read_saved_model("m", tmp_path, "", ""))
    (tmp_path / "saved_model.pbtxt").touch()
    assert "(saved_model.pbtxt is not read" in text_of(lambda: read_saved_model("m", tmp_path, "", ""))
    assert "there is no file" in text_of(lambda: read_graph("m", tmp_path / "model.graphdef"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (('"x"', '"z"'), "unexpected inference input 'z', allowed inputs are: x"),
        (('"y"', '"z"'), "unexpected inference output 'z', allowed outputs are: y"),
        (("TYPE_FP32", "TYPE_INT32"), "expects datatype TYPE_INT32 for input 'x', model provides TYPE_FP32"),
        (("dims: [ 4 ]", "dims: [ 5 ]"), "the model expects 2 dimensions (shape [-1,4])"),
        (("} ] output", MORE), "configuration expects 2 inputs, model provides 1"),
        (("dims: [ 4 ]", "dims: [ 4 ] optional: true"), "'optional' is set to true for input 'x'"),
        (("dims: [ 4 ]", "dims: [ 4 ] allow_ragged_batch: true"), "input 'x' has allow_ragged_batch"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_model(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    """Triton's texts."""
    chosen = read_saved_model("m", saved(tmp_path), "", "")
    config = config_of("max_batch_size: 4 " + XY.replace(*change))
    assert text in text_of(lambda: check(config, chosen))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (tf.info("in:0", tf.BFLOAT16, [-1, 4]), "'x' has TensorFlow's type bfloat16, which has no equivalent here"),
        (tf.info("", tf.FLOAT, [-1, 4]), "'x' of its signature 'serving_default' is no dense tensor"),
    ],
)
def test_tensors_that_cannot_be_served(tmp_path: Path, content: bytes, text: str) -> None:
    """They are named, with what to do."""
    signature = tf.signature({"x": content}, Y)
    saved(tmp_path, tf.saved_model(tf.graph(["serve"], {"serving_default": signature})))
    assert text in text_of(lambda: completed(tmp_path))


def test_a_graph_goes_by_its_nodes(tmp_path: Path) -> None:
    """Names may say which output of the node is meant."""
    graph = read_graph("m", frozen(tmp_path))
    assert graph.nodes == {"a", "w", "b"}
    config = config_of("max_batch_size: 4 " + AB.replace('"b"', '"b:1"'), "tensorflow_graphdef")
    assert check_graph(config, graph) == ([("a", "a:0")], [("b:1", "b:1")])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "unable to autofill for 'm', a GraphDef does not say what its inputs and outputs are"),
        (AB.replace('"a"', '"z"'), "unexpected inference input 'z', allowed inputs are: a | "),
        (AB.replace('"b"', '"z"'), "unexpected inference output 'z', allowed outputs are: b, w, ... | "),
        (AB.replace("FP32", "INT8", 1), "TYPE_INT8 for input 'a', model provides TYPE_FP32"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_graph(tmp_path: Path, text: str, wanted: str) -> None:
    """It says what there is."""
    graph = read_graph("m", frozen(tmp_path))
    assert wanted in text_of(lambda: check_graph(config_of(text, "tensorflow_graphdef"), graph))


def test_a_platform_has_to_be_one() -> None:
    """TensorFlow's two kinds of models differ in it alone."""
    config = config_of(platform="")
    files = ModelFiles(Path("/nowhere"), 1)
    text = text_of(lambda: TensorFlowBackend().load(config, None, files, None, None))  # type: ignore[arg-type]
    assert "its platform is '', expected tensorflow_savedmodel or tensorflow_graphdef" in text


def planned(root: Path, settings: dict[str, str] | None = None, **parameters: str) -> Any:
    config = config_of()
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    return plan_tensorflow(config, settings or {}, (root / "1", root))


def test_parameters_and_settings(tmp_path: Path) -> None:
    """Each is read; 0 threads are "not said"; files of the version go first."""
    (tmp_path / "1").mkdir()
    (tmp_path / "init.json").write_text('{"init_ops": ["theirs"]}')
    (tmp_path / "1" / "init.json").write_text('{"init_ops": ["init"]}')
    plan = planned(
        tmp_path,
        {"allow-soft-placement": "false", "gpu-memory-fraction": "0.5", "version": "2", "shm-default-byte-size": "1"},
        TF_NUM_INTRA_THREADS="2", TF_NUM_INTER_THREADS="0", TF_USE_PER_SESSION_THREADS="On", TF_GRAPH_TAG="t",
        TF_SIGNATURE_DEF="s", TF_INIT_OPS_FILE="init.json", conch_padding="8",
    )  # fmt: skip
    assert (plan.intra, plan.inter, plan.per_session, plan.tag, plan.signature) == (2, None, True, "t", "s")
    assert (plan.init_ops, plan.soft_placement, plan.gpu_fraction) == (("init",), False, 0.5)
    assert plan.warnings == ()


def test_what_has_no_effect_is_named(tmp_path: Path) -> None:
    """Parameters and settings that mean nothing here."""
    plan = planned(tmp_path, {"fast": "1"}, MAX_SESSION_SHARE_COUNT="2", TF_TYPO="1")
    share, typo, setting = plan.warnings
    assert "'MAX_SESSION_SHARE_COUNT' has no effect" in share
    assert "'TF_TYPO' has no effect, the tensorflow backend knows MAX_SESSION" in typo
    assert "--backend-config=tensorflow,fast=1 has no effect" in setting


@pytest.mark.parametrize(
    ("settings", "parameters", "text"),
    [
        (
            {},
            {"TF_NUM_INTRA_THREADS": "two"},
            "parameter 'TF_NUM_INTRA_THREADS' of model 'm' is 'two', expected a whole",
        ),
        ({}, {"TF_USE_PER_SESSION_THREADS": "maybe"}, "is 'maybe', expected true or false"),
        ({}, {"TF_INIT_OPS_FILE": "no.json"}, "is 'no.json', and there is neither"),
        ({}, {"TF_INIT_OPS_FILE": "bad.json"}, "does not list initialization operations"),
        ({"version": "1"}, {}, "backend setting 'version' of tensorflow is '1', expected 2"),
        ({"gpu-memory-fraction": "2"}, {}, "is '2', expected a number from 0 to 1"),
        ({"default-max-batch-size": "-1"}, {}, "is '-1', expected a whole number >= 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, settings: dict[str, str], parameters: dict[str, str], text: str
) -> None:
    """It says what was expected."""
    (tmp_path / "bad.json").write_text('{"init": "x"}')
    assert text in text_of(lambda: planned(tmp_path, settings, **parameters))


@pytest.mark.parametrize("content", [b"\x12\x05ab", b"\x12\x04\x12\xff\xff\xff", b"\x0a\x03\x0a\x09a"])
def test_a_corrupt_file_says_so(tmp_path: Path, content: bytes) -> None:
    """Parts of the file that were being read when it broke do not get in the way of the sentence."""
    text = text_of(lambda: read_saved_model("m", saved(tmp_path / "a", content), "", ""))
    assert "cannot be read as a TensorFlow SavedModel: " in text
    text = text_of(lambda: read_graph("m", frozen(tmp_path / "b", b"\x0a\x09" + content)))
    assert "cannot be read as a TensorFlow GraphDef: " in text


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes the file anew meanwhile does not end the server."""
    node = b"\x0a\x01n\x2a\x80\x40" + bytes([8, 1]) * 4096
    path = tmp_path / "model.graphdef"
    path.write_bytes((b"\x0a" + bytes([len(node) & 0x7F | 0x80, len(node) >> 7]) + node) * 8)
    messages = model_file.wire.messages

    def cut(data: memoryview, number: int) -> Iterator[memoryview]:
        path.write_bytes(b"")
        return messages(data, number)

    monkeypatch.setattr(model_file.wire, "messages", cut)
    assert model_file.read_graph("m", path).nodes == {"n"}
