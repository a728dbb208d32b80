"""Broken model repositories, rebuilt from what people reported; each has one cause that a check must name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from conch.types import dtype
from support.onnx_models import add_sub, graph, identity


@dataclass(frozen=True)
class Broken:
    """`rule`, `says` (a part of the message) and `at` (path:line, or a path alone) are what a check must tell.

    `heals`: `conch check --fix` makes all of its models load.
    """

    name: str
    build: Callable[[Path], None]
    rule: str
    says: str
    at: str
    heals: bool


ALL: dict[str, Broken] = {}

MODEL = """class TritonPythonModel:
    def execute(self, requests):
        import triton_python_backend_utils as pb
        return [pb.InferenceResponse([pb.Tensor("y", each.inputs()[0].as_numpy())]) for each in requests]
"""
PYTHON = """backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
#: Of `identity()`: x and y of shape [batch, 2].
ONNX = """backend: "onnxruntime"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


def broken(
    rule: str, says: str, at: str, *, heals: bool = True
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(build: Callable[[Path], None]) -> Callable[[Path], None]:
        name = build.__name__
        ALL[name] = Broken(name, build, rule, says, at, heals)
        return build

    return register


def put(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def file_of(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString()


def fixed(shape: list[int]) -> bytes:
    return file_of(identity(shape=shape))


# Batch dimensions: server#1545, #842, #4563, #4384, #1889, #7450, #6832, #4903, #998, #6196.


@broken("onnx-dims-leave-out-batch", "hold the batch dimension", "batch_in_dims/config.pbtxt:3")
def batch_in_dims(root: Path) -> None:
    """server#1545, #4563: dims hold the batch dimension although max_batch_size adds it."""
    config = ONNX.replace("dims: [ 2 ]", "dims: [ -1, 2 ]  # batch, features")
    put(root, {"batch_in_dims/config.pbtxt": config.replace("] } ]", "]\n} ]").replace(" # batch, features", ""),
               "batch_in_dims/1/model.onnx": file_of(identity())})  # fmt: skip


@broken("onnx-batch-dimension-is-free", "the first dimension is fixed", "fixed_batch/config.pbtxt:3")
def fixed_batch(root: Path) -> None:
    """server#1889, #842: max_batch_size 1 for a model that was exported with a fixed first dimension of 1; the error
    showed two equal shapes."""
    config = """name: "fixed_batch"
platform: "onnxruntime_onnx"
max_batch_size: 1
input [
  {
    name: "x"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 4, 4 ]
    reshape { shape: [ 1, 3, 4, 4 ] }
  }
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3, 4, 4 ] reshape { shape: [ 1, 3, 4, 4 ] } } ]
"""
    put(root, {"fixed_batch/config.pbtxt": config, "fixed_batch/1/model.onnx": fixed([1, 3, 4, 4])})


@broken("onnx-dims-name-batch", "dims must name the batch dimension", "batch_size_forgotten/config.pbtxt:2")
def batch_size_forgotten(root: Path) -> None:
    """server#4384, #6529: no max_batch_size, and dims without the batch dimension."""
    config = ONNX.replace("max_batch_size: 4\n", "")
    put(root, {"batch_size_forgotten/config.pbtxt": config, "batch_size_forgotten/1/model.onnx": file_of(identity())})


@broken("onnx-dims-name-batch", "max_batch_size is 0", "batch_size_zero/config.pbtxt:3")
def batch_size_zero(root: Path) -> None:
    """server#2192: max_batch_size is 0, and dims are those of one row."""
    config = ONNX.replace("max_batch_size: 4", "max_batch_size: 0")
    put(root, {"batch_size_zero/config.pbtxt": config, "batch_size_zero/1/model.onnx": file_of(identity())})


@broken("onnx-dims-agree", "the model's shape is [1, 3, 224, 224]", "wrong_size/config.pbtxt:6")
def wrong_size(root: Path) -> None:
    """server#4194: 244 instead of 224 in dims; the message was four numbers beside four numbers."""
    config = """platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  { name: "x"
    data_type: TYPE_FP32
    dims: [ 1, 3, 224, 244 ] # pose
  }
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 3, 224, 224 ] } ]
"""
    put(root, {"wrong_size/config.pbtxt": config, "wrong_size/1/model.onnx": fixed([1, 3, 224, 224])})


@broken("onnx-dims-agree", "the model's shape is [-1, 5, 3]", "open_size/config.pbtxt:4")
def open_size(root: Path) -> None:
    """server#4065: the config leaves a size open that the model has fixed."""
    config = ONNX.replace("dims: [ 2 ]", "dims: [ 5, 3 ]", 1).replace("dims: [ 2 ]", "dims: [ -1, 3 ]")
    put(root, {"open_size/config.pbtxt": config, "open_size/1/model.onnx": file_of(identity(shape=("batch", 5, 3)))})


@broken("onnx-batch-dimension-is-free", "cannot take batches", "open_output/config.pbtxt:1")
def open_output(root: Path) -> None:
    """server#7462: max_batch_size in a config that is otherwise left to the server, and a model with a fixed output."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)]
    model = graph(nodes, {"x": (dtype.FP32, ("batch", 2))}, {"y": (dtype.FP32, (1, 2))})
    put(root, {"open_output/config.pbtxt": "max_batch_size: 8\n", "open_output/1/model.onnx": file_of(model)})


@broken("onnx-dims-agree", "config's dims are [2, 1]", "extra_dimension/config.pbtxt:5")
def extra_dimension(root: Path) -> None:
    """server#6832, #998: a dimension of 1 too many, one below the other."""
    config = ONNX.replace("input [ { name", "input [ {\n  name").replace("dims: [ 2 ]", "\n  dims: 2 dims: 1\n", 1)
    config = config.replace("TYPE_FP32 \n", "TYPE_FP32\n")
    put(root, {"extra_dimension/config.pbtxt": config, "extra_dimension/1/model.onnx": file_of(identity())})


# Types and names: server#2644, #7307, #4903, #6196.


@broken("onnx-types-agree", "the model's type is TYPE_INT64, the config says TYPE_FP32", "wrong_type/config.pbtxt:3")
def wrong_type(root: Path) -> None:
    """server#2644: FP32 for INT64; the message had expected and found the wrong way round."""
    put(root, {"wrong_type/config.pbtxt": ONNX, "wrong_type/1/model.onnx": file_of(identity(dtype.INT64))})


@broken("onnx-names-agree", "did you mean", "wrong_name/config.pbtxt:3")
def wrong_name(root: Path) -> None:
    """server#4903: the exporter gave the input another name than the one that was asked for."""
    config = ONNX.replace('name: "x"', 'name: "X__0"')
    put(root, {"wrong_name/config.pbtxt": config, "wrong_name/1/model.onnx": file_of(identity())})


@broken("onnx-names-are-not-swapped", "have each other's type and dims", "swapped_names/config.pbtxt:4")
def swapped_names(root: Path) -> None:
    """server#6196: ids and mask of a tokenizer are listed under each other's name."""
    nodes = [helper.make_node("Identity", ["ids"], ["y"]), helper.make_node("Identity", ["mask"], ["z"])]
    ids, mask = (dtype.INT64, ("batch", 4)), (dtype.FP32, ("batch", 2))
    model = graph(nodes, {"ids": ids, "mask": mask}, {"y": ids, "z": mask})
    config = """backend: "onnxruntime"
max_batch_size: 4
input [
  { name: "mask" data_type: TYPE_INT64 dims: [ 4 ] },
  { name: "ids" data_type: TYPE_FP32 dims: [ 2 ] }
]
output [ { name: "y" data_type: TYPE_INT64 dims: [ 4 ] }, { name: "z" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
    put(root, {"swapped_names/config.pbtxt": config, "swapped_names/1/model.onnx": file_of(model)})


@broken("onnx-inputs-are-all-listed", "input 'b' is not in the config", "input_left_out/config.pbtxt:3")
def input_left_out(root: Path) -> None:
    """server#4520: one of the model's inputs was forgotten."""
    config = ONNX.replace('"x"', '"a"').replace('"y"', '"sum"')
    put(root, {"input_left_out/config.pbtxt": config, "input_left_out/1/model.onnx": file_of(add_sub())})


# Texts that cannot be read.


@broken("config-text-is-sound", "unknown value FLOAT32", "foreign_type/config.pbtxt:3")
def foreign_type(root: Path) -> None:
    """server#7056 and many more: the type's name as numpy has it."""
    config = ONNX.replace("TYPE_FP32", "FLOAT32", 1)
    put(root, {"foreign_type/config.pbtxt": config, "foreign_type/1/model.onnx": file_of(identity())})


@broken("config-text-is-sound", "unknown field 'datatype' in ModelInput", "unknown_field/config.pbtxt:3")
def unknown_field(root: Path) -> None:
    """Protobuf's parser said "Message type inference.ModelInput has no field named datatype", without a line."""
    config = ONNX.replace("data_type", "datatype", 1)
    put(root, {"unknown_field/config.pbtxt": config, "unknown_field/1/model.onnx": file_of(identity())})


@broken("config-text-is-sound", "a comma before ']'", "trailing_comma/config.pbtxt:5")
def trailing_comma(root: Path) -> None:
    """server#5602: a comma after the last entry; Triton showed the position in a library's log, without a file."""
    config = """backend: "onnxruntime"
max_batch_size: 4
input [
  { name: "x" data_type: TYPE_FP32 dims: [ 2 ] },
]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""
    put(root, {"trailing_comma/config.pbtxt": config, "trailing_comma/1/model.onnx": file_of(identity())})


@broken("config-text-is-sound", "field 'key' is specified more than once", "two_keys/config.pbtxt:7")
def two_keys(root: Path) -> None:
    """server#3333: several pairs in one output_map."""
    config = ensemble(
        step("two_keys_sums", {"a": "x", "b": "x"}, {}).replace(
            "}\n  }", 'output_map { key: "sum" value: "y",\n key: "difference" value: "z" } }'
        ),
        outputs=("y", "z"),
    )
    config = """platform: "ensemble"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "z" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling { step [ { model_name: "two_keys_sums" model_version: -1
  input_map { key: "a" value: "x" } input_map { key: "b" value: "x" }
  output_map { key: "sum" value: "y", key: "difference" value: "z" } } ] }
"""
    put(root, {"two_keys/config.pbtxt": config, "two_keys/1/.keep": "",
               "two_keys_sums/1/model.onnx": file_of(add_sub())})  # fmt: skip


@broken("config-text-is-sound", "expected a text in quotes", "curly_quotes/config.pbtxt:1")
def curly_quotes(root: Path) -> None:
    """Copied from a web page or a chat, which had made quotes curly."""
    config = ONNX.replace('"onnxruntime"', "“onnxruntime”")
    put(root, {"curly_quotes/config.pbtxt": config, "curly_quotes/1/model.onnx": file_of(identity())})


@broken("config-text-is-sound", "unknown field 'output' in ModelInput", "brace_left_out/config.pbtxt:7")
def brace_left_out(root: Path) -> None:
    """server#3656 and others: a bracket that is not closed shows much further down."""
    config = """backend: "onnxruntime"
max_batch_size: 4
input {
  name: "x"
  data_type: TYPE_FP32
  dims: [ 2 ]
output {
  name: "y"
  data_type: TYPE_FP32
  dims: [ 2 ]
}
"""
    put(root, {"brace_left_out/config.pbtxt": config, "brace_left_out/1/model.onnx": file_of(identity())})


@broken("config-text-is-sound", "expected '{', found '\"4\"'", "plain_parameter/config.pbtxt:5")
def plain_parameter(root: Path) -> None:
    """A parameter's value without string_value."""
    config = ONNX + 'parameters: { key: "intra_op_thread_count" value: "4" }\n'
    put(root, {"plain_parameter/config.pbtxt": config, "plain_parameter/1/model.onnx": file_of(identity())})


# Backends and names: server#3650, #7632, #5255, #7336.


@broken("backend-is-given", "'python' is no platform", "backend_as_platform/config.pbtxt:1")
def backend_as_platform(root: Path) -> None:
    """server#3650: platform: "python"; the message was "unexpected platform type python"."""
    config = PYTHON.replace("backend:", "platform:")
    put(root, {"backend_as_platform/config.pbtxt": config, "backend_as_platform/1/model.py": MODEL})


@broken("backend-is-known", "no backend 'onnx'", "short_backend/config.pbtxt:1")
def short_backend(root: Path) -> None:
    """server#7336: the backend by its short name."""
    config = ONNX.replace("onnxruntime", "onnx")
    put(root, {"short_backend/config.pbtxt": config, "short_backend/1/model.onnx": file_of(identity())})


@broken(
    "name-is-the-folder", "the config's name is 'resnet50', the folder's is 'other_name'", "other_name/config.pbtxt:1"
)
def other_name(root: Path) -> None:
    """The folder was copied for a second model, its config was not changed."""
    put(root, {"other_name/config.pbtxt": 'name: "resnet50"\n' + ONNX,
               "other_name/1/model.onnx": file_of(identity())})  # fmt: skip


@broken("config-file-has-its-name", "config.pbtxt.txt is not read", "windows_name/config.pbtxt.txt")
def windows_name(root: Path) -> None:
    """server#7336 (from Windows): an editor added .txt; the message was "Could not determine backend"."""
    put(root, {"windows_name/config.pbtxt.txt": PYTHON, "windows_name/1/model_v2.txt": "",
               "windows_name/1/model.py": MODEL})  # fmt: skip


# Folders: server#3687, #2554, #1633, #6416, tutorials#80.


@broken("version-folder-is-there", "model.onnx lies beside the config", "no_version")
def no_version(root: Path) -> None:
    """server#3687: "No model version was found"."""
    put(root, {"no_version/config.pbtxt": ONNX, "no_version/model.onnx": file_of(identity())})


@broken("version-folder-is-a-number", "'v1' is not a version", "version_v1/v1")
def version_v1(root: Path) -> None:
    """server#3384: the version folder is called v1."""
    put(root, {"version_v1/config.pbtxt": ONNX, "version_v1/v1/model.onnx": file_of(identity())})


@broken("version-folder-is-a-number", "'01' is not a version", "version_01/01")
def version_01(root: Path) -> None:
    """A version folder with a leading zero is ignored."""
    put(root, {"version_01/01/model.onnx": file_of(identity())})


@broken("model-file-is-there", "there is no model.onnx in own_name/1", "own_name/1")
def own_name(root: Path) -> None:
    """server#6416: the file keeps the name under which it was downloaded."""
    put(root, {"own_name/config.pbtxt": ONNX, "own_name/1/inswapper_128.onnx": file_of(identity())})


@broken("backend-can-be-told", "Could not determine backend", "no_config_own_name")
def no_config_own_name(root: Path) -> None:
    """server#6989: no config, and a file that has not the expected name."""
    put(root, {"no_config_own_name/1/classifier.onnx": file_of(identity())})


@broken("model-file-is-there", "there is no model.onnx", "upper_case/1")
def upper_case(root: Path) -> None:
    """Works on a laptop whose file system does not tell Model.onnx from model.onnx."""
    put(root, {"upper_case/config.pbtxt": ONNX, "upper_case/1/Model.onnx": file_of(identity())})


@broken("version-folder-is-there", "there is no version folder", "empty_ensemble")
def empty_ensemble(root: Path) -> None:
    """tutorials#80: an ensemble without its (empty) version folder, which git does not keep."""
    put(root, {"empty_ensemble/config.pbtxt": ensemble(step("empty_ensemble_part", {"x": "x"}, {"y": "y"})),
               "empty_ensemble_part/1/model.onnx": file_of(identity())})  # fmt: skip


@broken("model-folder-holds-a-model", "the folder holds models of its own: inner", "outer", heals=False)
def one_level_up(root: Path) -> None:
    """server#1633: the folder above the repository was given."""
    put(root, {"outer/inner/config.pbtxt": ONNX, "outer/inner/1/model.onnx": file_of(identity())})


@broken("model-file-is-complete", "pointer of Git LFS", "lfs_pointer/1/model.onnx", heals=False)
def lfs_pointer(root: Path) -> None:
    """server#3687 and others: cloned without Git LFS; ONNX Runtime said "Protobuf parsing failed"."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    put(root, {"lfs_pointer/config.pbtxt": ONNX, "lfs_pointer/1/model.onnx": pointer})


@broken("onnx-file-opens", "onnx runtime error", "half_file/1/model.onnx", heals=False)
def half_file(root: Path) -> None:
    """server#6416: the download was cut off."""
    put(root, {"half_file/config.pbtxt": ONNX, "half_file/1/model.onnx": b"<!DOCTYPE html><html>Not found</html>"})


@broken("onnx-external-data-is-there", "weights.bin", "data_elsewhere/1/model.onnx")
def data_elsewhere(root: Path) -> None:
    """modelmesh-serving#221: the weights' file was not beside the model."""
    model = graph([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (dtype.FP32, ("batch", 2))},
                  {"y": (dtype.FP32, ("batch", 2))}, {"w": np.zeros(2, dtype=np.float32)})  # fmt: skip
    weights = model.graph.initializer[0]
    raw = numpy_helper.to_array(weights).tobytes()
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="weights.bin")
    weights.external_data.add(key="length", value=str(len(raw)))
    put(root, {"data_elsewhere/config.pbtxt": ONNX, "data_elsewhere/1/model.onnx": file_of(model),
               "data_elsewhere/weights.bin": raw})  # fmt: skip


@broken("version-policy-selects", "the folder holds 1", "other_version/config.pbtxt:5", heals=False)
def other_version(root: Path) -> None:
    """server#7420: the policy names a version that was not uploaded."""
    config = ONNX + "version_policy { specific { versions: [ 3 ] } }\n"
    put(root, {"other_version/config.pbtxt": config, "other_version/1/model.onnx": file_of(identity())})


# Ensembles: server#4786, #5742, #4260, #2884, #4560, #446, #5474.


def ensemble(steps: str, *, batch: int = 4, dims: int = 2, outputs: tuple[str, ...] = ("y",)) -> str:
    listed = ", ".join(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] }}' for name in outputs)
    return f"""platform: "ensemble"
max_batch_size: {batch}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }} ]
output [ {listed} ]
ensemble_scheduling {{ step [
{steps}
] }}
"""


def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    """Three lines: the model, its inputs, its outputs."""

    def maps(kind: str, names: Mapping[str, str]) -> str:
        return " ".join(f'{kind} {{ key: "{key}" value: "{value}" }}' for key, value in names.items())

    return (
        f'  {{ model_name: "{model}" model_version: -1\n    {maps("input_map", inputs)}\n'
        f"    {maps('output_map', outputs)} }}"
    )


def ensemble_over(root: Path, name: str, config: str, model: onnx.ModelProto | None = None) -> None:
    put(root, {f"{name}/config.pbtxt": config, f"{name}/1/.keep": "",
               f"{name}_part/1/model.onnx": file_of(model or identity())})  # fmt: skip


@broken(
    "ensemble-inputs-are-mapped", "gives model 'input_not_mapped_part' no input 'b'", "input_not_mapped/config.pbtxt:6"
)
def input_not_mapped(root: Path) -> None:
    """server#5742: "error msg not helpful": the second model has an input that the ensemble does not give."""
    config = ensemble(step("input_not_mapped_part", {"a": "x"}, {"sum": "y"}))
    ensemble_over(root, "input_not_mapped", config, add_sub())


@broken("ensemble-map-names-tensors", "key", "maps_reversed/config.pbtxt:7")
def maps_reversed(root: Path) -> None:
    """server#4786: key and value of the maps are exchanged."""
    config = ensemble(step("maps_reversed_part", {"IMAGE": "x"}, {"RESULT": "y"})).replace('name: "x"', 'name: "IMAGE"')
    ensemble_over(root, "maps_reversed", config.replace('name: "y"', 'name: "RESULT"'))


@broken("ensemble-models-are-there", "runs model 'model_typo_prat'", "model_typo/config.pbtxt:6")
def model_typo(root: Path) -> None:
    """server#4260: a step names a model that is not there."""
    ensemble_over(root, "model_typo", ensemble(step("model_typo_prat", {"x": "x"}, {"y": "y"})))


@broken("ensemble-types-agree", "inconsistent data type", "ensemble_type/config.pbtxt:3")
def ensemble_type(root: Path) -> None:
    """server#2884: the ensemble's input is of another type than the model's."""
    config = ensemble(step("ensemble_type_part", {"x": "x"}, {"y": "y"})).replace("TYPE_FP32", "TYPE_UINT8", 1)
    ensemble_over(root, "ensemble_type", config)


@broken("ensemble-shapes-agree", "inconsistent shape", "ensemble_shape/config.pbtxt:4")
def ensemble_shape(root: Path) -> None:
    """server#274: the ensemble's output has other dims than the model's."""
    ensemble_over(root, "ensemble_shape", ensemble(step("ensemble_shape_part", {"x": "x"}, {"y": "y"}), dims=10))


@broken("ensemble-batch-size-fits", "takes batches of 4 at most", "ensemble_batch/config.pbtxt:2")
def ensemble_batch(root: Path) -> None:
    """server#4520: the ensemble allows larger batches than one of its models."""
    ensemble_over(root, "ensemble_batch", ensemble(step("ensemble_batch_part", {"x": "x"}, {"y": "y"}), batch=32))


@broken("map-key-is-given-once", "output_map has the key 'sum' 2 times", "key_twice/config.pbtxt:8", heals=False)
def key_twice(root: Path) -> None:
    """server#4560: "output 'OUT' is not written", because one key stood twice and the last one won."""
    steps = step("key_twice_part", {"a": "x", "b": "x"}, {"sum": "y"})
    steps = steps.replace('value: "y" }', 'value: "y" } output_map { key: "sum" value: "z" }')
    ensemble_over(root, "key_twice", ensemble(steps, outputs=("y", "z")), add_sub())


@broken("ensemble-has-no-circle", "circle_one -> circle_two -> circle_one", "circle_one/config.pbtxt:6", heals=False)
def circle(root: Path) -> None:
    """Two ensembles that need one another: Triton waits for each."""
    for one, other in (("circle_one", "circle_two"), ("circle_two", "circle_one")):
        put(root, {f"{one}/config.pbtxt": ensemble(step(other, {"x": "x"}, {"y": "y"})), f"{one}/1/.keep": ""})


@broken("ensemble-version-is-served", "needs version 1 of", "old_version/config.pbtxt:6")
def old_version(root: Path) -> None:
    """server#5474, #5080: a step asks for a version that the policy does not serve."""
    config = ensemble(step("old_version_part", {"x": "x"}, {"y": "y"})).replace("model_version: -1", "model_version: 1")
    ensemble_over(root, "old_version", config)
    put(root, {"old_version_part/2/model.onnx": file_of(identity())})


# Python models: server#7410, #4302, #4022.


@broken("python-file-compiles", "is no valid Python", "python_syntax/1/model.py:2", heals=False)
def python_syntax(root: Path) -> None:
    """python_backend: "Stub process is not healthy", for a missing bracket."""
    source = "class TritonPythonModel:\n    def execute(self, requests:\n        return []\n"
    put(root, {"python_syntax/config.pbtxt": PYTHON, "python_syntax/1/model.py": source})


@broken("python-imports-are-there", "imports 'no_such_package_of_ours.deep'", "python_import/1/model.py:1", heals=False)
def python_import(root: Path) -> None:
    """server#4302: a package that is not installed where the server runs."""
    put(root, {"python_import/config.pbtxt": PYTHON,
               "python_import/1/model.py": "import no_such_package_of_ours.deep\n" + MODEL})  # fmt: skip


@broken("python-class-is-there", "no class TritonPythonModel; it has MyModel", "python_class/1/model.py:1", heals=False)
def python_class(root: Path) -> None:
    """server#7410: the class has a name of its own."""
    source = MODEL.replace("TritonPythonModel", "MyModel")
    put(root, {"python_class/config.pbtxt": PYTHON, "python_class/1/model.py": source})


@broken("environment-is-there", "env.tar.gz' is not there", "python_environment/config.pbtxt:5", heals=False)
def python_environment(root: Path) -> None:
    """server#4022, #6115: the environment's archive was left behind."""
    value = 'value: { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" }'
    config = PYTHON + 'parameters: { key: "EXECUTION_ENV_PATH" ' + value + " }\n"
    put(root, {"python_environment/config.pbtxt": config, "python_environment/1/model.py": MODEL})


@broken("model-file-is-there", "there is no model.py", "python_above/1")
def python_above(root: Path) -> None:
    """server#7410: model.py lies beside config.pbtxt, and the version folder is empty."""
    put(root, {"python_above/config.pbtxt": PYTHON, "python_above/model.py": MODEL, "python_above/1/.keep": ""})


@broken("requirements-can-be-read", "line 2", "python_requirements/1/requirements.txt:2", heals=False)
def python_requirements(root: Path) -> None:
    """server#6115: a line of requirements.txt that is no requirement."""
    put(root, {"python_requirements/config.pbtxt": PYTHON, "python_requirements/1/model.py": MODEL,
               "python_requirements/1/requirements.txt": "numpy>=1.26\nnot a requirement\n"})  # fmt: skip


# Machines, queues, caches, sequences, files: server#3912, #842, #4367.


@broken("instance-groups-suit-the-machine", "no GPUs are available", "gpu_only/config.pbtxt:5")
def gpu_only(root: Path) -> None:
    """server#3912: KIND_GPU on a machine without GPUs."""
    config = ONNX + "instance_group [ { count: 1 kind: KIND_GPU } ]\n"
    put(root, {"gpu_only/config.pbtxt": config, "gpu_only/1/model.onnx": file_of(identity())})


@broken("instance-groups-suit-the-machine", "specifies invalid or unsupported gpu id 0", "gpu_listed/config.pbtxt:5")
def gpu_listed(root: Path) -> None:
    """server#4194: a certain GPU on a machine that has none."""
    config = ONNX + "instance_group {\n  count: 1\n  gpus: 0\n  kind: KIND_GPU\n}\n"
    put(root, {"gpu_listed/config.pbtxt": config, "gpu_listed/1/model.onnx": file_of(identity())})


@broken("preferred-sizes-fit", "preferred size must be <= max batch size", "preferred/config.pbtxt:5")
def preferred(root: Path) -> None:
    """server#1157: preferred batches larger than the largest."""
    config = ONNX + "dynamic_batching { preferred_batch_size: [ 2, 4, 8, 16 ] max_queue_delay_microseconds: 100 }\n"
    put(root, {"preferred/config.pbtxt": config, "preferred/1/model.onnx": file_of(identity())})


@broken("cache-suits-transactions", "Response Cache does not currently support", "cached_stream/config.pbtxt:5")
def cached_stream(root: Path) -> None:
    """A response cache for a decoupled model."""
    config = PYTHON + "response_cache { enable: true }\nmodel_transaction_policy { decoupled: true }\n"
    put(root, {"cached_stream/config.pbtxt": config, "cached_stream/1/model.py": MODEL})


@broken("hidden-tensors-are-apart", "'START' is specified more than once", "control_as_input/config.pbtxt:3")
def control_as_input(root: Path) -> None:
    """server#915, #1123: the control is listed as an input, too."""
    config = """backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "START" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
sequence_batching { control_input [ { name: "START"
  control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] } ] }
"""
    put(root, {"control_as_input/config.pbtxt": config, "control_as_input/1/model.py": MODEL})


@broken("warmup-file-is-there", "'sample.bin', the data of input 'x'", "warm_file/config.pbtxt:6")
def warm_file(root: Path) -> None:
    """server#4367: the sample's file lies in the model's folder instead of its folder warmup."""
    config = (
        ONNX
        + """model_warmup [ { name: "first" batch_size: 1 inputs { key: "x" value {
  data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "sample.bin" } } } ]
"""
    )
    put(root, {"warm_file/config.pbtxt": config, "warm_file/1/model.onnx": file_of(identity()),
               "warm_file/sample.bin": bytes(8)})  # fmt: skip


@broken("label-file-is-there", "label file 'labels.txt' of output 'y'", "label_file/config.pbtxt:4")
def label_file(root: Path) -> None:
    """The labels were put into the version folder."""
    config = ONNX.replace("dims: [ 2 ] } ]", 'dims: [ 2 ] label_filename: "labels.txt" } ]').replace(
        'label_filename: "labels.txt" ', "", 1
    )
    put(root, {"label_file/config.pbtxt": config, "label_file/1/model.onnx": file_of(identity()),
               "label_file/1/labels.txt": "cat\ndog\n"})  # fmt: skip


@broken("inputs-are-sound", "dimension must be integer >= 1, or -1", "size_zero/config.pbtxt:3")
def size_zero(root: Path) -> None:
    """Size 0 for "any size", as other programs have it."""
    config = PYTHON.replace("dims: [ 2 ]", "dims: [ 0 ]", 1)
    put(root, {"size_zero/config.pbtxt": config, "size_zero/1/model.py": MODEL})
