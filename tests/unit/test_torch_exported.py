"""Programs of torch.export: what they say of themselves, their names, and their batches."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.types.error import Code, InferError
from conch.types.tensor import to_numpy

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'conch[torch]'")

from support.torch_models import add_sub, exported, serve  # noqa: E402

ONE, TWO = np.array([[5, 6]], np.float32), np.array([[1, 2]], np.float32)
BATCH = torch.export.Dim("batch", min=1, max=64)


class Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor], *, k: torch.Tensor) -> dict[str, Any]:
        return {"sum": x + more["y"], "pair": (k, x)}


def nested() -> Any:
    # One tensor given three times would be one input to torch.export.
    x, y, k = torch.zeros(3, 2, 2)
    open_ = {"x": {0: BATCH}, "more": {"y": {0: BATCH}}, "k": {0: BATCH}}
    return exported(Nested(), (x.clone(), {"y": y.clone()}), open_, k=k.clone())


@pytest.mark.slow
def test_exported_programs_complete_their_config(tmp_path: Path) -> None:
    """A .pt2 knows names, types and sizes: with an open first dimension everywhere it batches, as ONNX models do."""
    served = serve(tmp_path, nested(), filename="model.pt2")
    assert [(each.name, list(each.dims)) for each in served.config.input] == [("x", [2]), ("more_y", [2]), ("k", [2])]
    assert [each.name for each in served.config.output] == ["sum", "OUTPUT__1", "OUTPUT__2"]
    assert served.config.max_batch_size == 4
    assert served.config.HasField("dynamic_batching")


def test_exported_programs_of_fixed_size_do_not_batch(tmp_path: Path) -> None:
    """Without an open first dimension shapes are complete, and a batch size is refused with Triton's text."""
    served = serve(tmp_path, exported(add_sub(), (torch.zeros(3, 2), torch.zeros(3, 2))), filename="model.pt2")
    assert served.config.max_batch_size == 0
    assert [list(each.dims) for each in served.config.input] == [[3, 2], [3, 2]]
    with pytest.raises(InferError, match="autofill failed for model 'm': model does not support batching"):
        serve(tmp_path, lambda path: None, "max_batch_size: 2", filename="model.pt2")


@pytest.mark.parametrize(
    "names",
    [
        ("x", "more_y", "k", "sum", "OUTPUT__1"),
        ("INPUT__0", "INPUT__1", "INPUT__2", "OUTPUT__0", "OUTPUT__1"),
        ("ARGS[0]", "ARGS[1][y]", "KWARGS[k]", "RESULT[sum]", "RESULT[pair][0]"),
    ],
    ids=["forward", "ordinal", "path"],
)
def test_exported_programs_answer_to_all_of_tritons_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Inputs and outputs of a .pt2 go by the arguments' names, by number, or by Triton's ARGS, KWARGS and RESULT."""
    x, y, k, total, first = names
    text = "max_batch_size: 8" + "".join(
        f' input {{ name: "{name}" data_type: TYPE_FP32 dims: 2 }}' for name in (x, y, k)
    )
    text += "".join(f' output {{ name: "{name}" data_type: TYPE_FP32 dims: 2 }}' for name in (total, first))
    served = serve(tmp_path, nested(), text, filename="model.pt2")
    answer = served.run(served.request({x: ONE, y: TWO, k: TWO * 2}))[0]
    assert isinstance(answer, dict), answer
    found = {name: to_numpy(each.datatype, each.shape, each.data).tolist() for name, each in answer.items()}
    assert found == {total: [[6, 8]], first: [[2, 4]]}


def test_exported_programs_say_how_many_rows_they_take(tmp_path: Path) -> None:
    """The largest batch that a program was exported for bounds max_batch_size; one that needs two rows cannot batch."""

    def bounded(least: int, most: int) -> Any:
        rows = torch.export.Dim("rows", min=least, max=most)
        return exported(add_sub(), (torch.zeros(2, 2), torch.ones(2, 2)), {"a": {0: rows}, "b": {0: rows}})

    assert serve(tmp_path / "2", bounded(1, 2), filename="model.pt2").config.max_batch_size == 2
    with pytest.raises(InferError, match="max_batch_size is 3, the model was exported for at most 2 rows"):
        serve(tmp_path / "3", bounded(1, 2), "max_batch_size: 3", filename="model.pt2")
    assert serve(tmp_path / "4", bounded(2, 8), filename="model.pt2").config.max_batch_size == 0


class Evil:
    """What a pickle can do to whoever reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def swapped(part: str, content: bytes, also: dict[str, tuple[bytes, bytes]] | None = None) -> Any:
    """A program one of whose parts is not what torch.export wrote."""

    def write(path: Path) -> None:
        exported(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, each in parts.items():
                new = content if name.endswith(part) else each
                for end, (old, other) in (also or {}).items():
                    new = new.replace(old, other) if name.endswith(end) else new
                archive.writestr(name, new)

    return write


@pytest.mark.parametrize(
    ("part", "also"),
    [
        ("data/sample_inputs/model.pt", {}),
        ("data/weights/weight_0", {"weights_config.json": (b'"use_pickle": false', b'"use_pickle": true')}),
    ],
)
def test_pickles_of_more_than_tensors_are_not_read(
    tmp_path: Path, part: str, also: dict[str, tuple[bytes, bytes]]
) -> None:
    """A program whose example inputs or weights hold objects is refused before PyTorch unpickles them."""
    pickled = io.BytesIO()
    torch.save(Evil(tmp_path / "run"), pickled)
    with pytest.raises(InferError, match=f"{part}' in 'model.pt2' is a pickle of more than tensors: ") as caught:
        serve(tmp_path, swapped(part, pickled.getvalue(), also), filename="model.pt2")
    assert "could run any code" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_parts_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    """Two readers of an archive may take two different ones."""

    def write(path: Path) -> None:
        exported(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))(path)
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("model/data/sample_inputs/model.pt", b"")

    with pytest.raises(InferError, match=r"'model.pt2' holds 'model/data/sample_inputs/model.pt' twice"):
        serve(tmp_path, write, filename="model.pt2")


def test_an_input_that_is_left_out_is_named(tmp_path: Path) -> None:
    """A program needs all of its arguments, whatever the config calls optional."""
    text = """
      input { name: "a" data_type: TYPE_FP32 dims: 2 }
      input { name: "b" data_type: TYPE_FP32 dims: 2 optional: true }
      output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: 2 }"""
    served = serve(tmp_path, exported(add_sub(), (torch.zeros(2), torch.zeros(2))), text, filename="model.pt2")
    (error,) = served.run(served.request({"a": ONE[0]}))
    assert isinstance(error, InferError)
    assert error.code is Code.INVALID_ARG
    assert error.message == "the request has no input for the argument 'b', which the model needs"
