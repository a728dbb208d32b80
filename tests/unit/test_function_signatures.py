"""What the annotations of a declared function become, and what is said of those that say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conch.adopt.api import AdoptError
from conch.adopt.functions import function_config, read_functions
from conch.config.pbtxt import format_text
from conch.functions.outline import Outline
from conch.functions.values import Field, ValueRefused, encode

HEAD = """\
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict
import numpy as np
import numpy.typing as npt
import conch
"""
START = HEAD.count("\n") + 1


def written(folder: Path, code: str, name: str = "functions_here.py") -> Path:
    path = folder / name
    path.write_text(HEAD + code)
    return path


def config(folder: Path, code: str) -> str:
    """The config of the one function, in one line."""
    (entry,) = read_functions(written(folder, code), "")
    return " ".join(format_text(entry.config).split())


def refusal(folder: Path, code: str) -> str:
    path = written(folder, code)
    with pytest.raises(AdoptError) as caught:
        read_functions(path, "")
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    return text.removeprefix(f"{path}:")


@pytest.mark.slow
def test_arrays_name_type_and_shape(tmp_path: Path) -> None:
    """Annotated, Array and indexing are three spellings of one thing."""
    for annotation in ("Annotated[np.ndarray, conch.FP32(-1, 3)]", 'conch.Array["FP32", -1, 3]', "conch.FP32[-1, 3]"):
        text = config(tmp_path, f"@conch.model\ndef f(x: {annotation}) -> conch.INT64[2]: ...\n")
        assert 'input { name: "x" data_type: TYPE_FP32 dims: -1 dims: 3 }' in text
        assert 'output { name: "output" data_type: TYPE_INT64 dims: 2 }' in text
        assert text.startswith('name: "f" ')
        assert 'backend: "python"' in text


def test_numpys_own_annotation_gives_type_and_rank(tmp_path: Path) -> None:
    """np.ndarray with a shape of n sizes and a dtype is a tensor of n open dimensions."""
    text = config(
        tmp_path, "@conch.model\ndef f(x: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> list[int]: ...\n"
    )
    assert 'name: "x" data_type: TYPE_UINT8 dims: -1 dims: -1' in text
    assert 'name: "output" data_type: TYPE_INT64 dims: -1' in text


def test_plain_values_and_defaults(tmp_path: Path) -> None:
    """Plain Python types have a tensor type each; what has a default, or may be None, is optional."""
    text = config(
        tmp_path,
        "@conch.model\ndef f(a: str, b: bytes, c: int, d: float, e: bool = True, "
        "g: list[str] | None = None) -> str: ...\n",
    )
    for name, kind in (("a", "STRING"), ("b", "STRING"), ("c", "INT64"), ("d", "FP64")):
        assert f'input {{ name: "{name}" data_type: TYPE_{kind} dims: 1 }}' in text
    assert 'input { name: "e" data_type: TYPE_BOOL dims: 1 optional: true }' in text
    assert 'input { name: "g" data_type: TYPE_STRING dims: -1 optional: true }' in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "@dataclass\nclass Out:\n    label: str\n    score: float\n",
        "class Out(NamedTuple):\n    label: str\n    score: float\n",
        "class Out(TypedDict):\n    label: str\n    score: float\n",
        "import pydantic\nclass Out(pydantic.BaseModel):\n    label: str\n    score: float\n",
    ],
)
def test_structures_have_their_fields_as_tensors(tmp_path: Path, kind: str) -> None:
    """A dataclass, NamedTuple, TypedDict or pydantic model is as many inputs or outputs as it has fields."""
    text = config(tmp_path, kind + "@conch.model\ndef f(x: Out, more: int) -> Out: ...\n")
    fields = '{ name: "label" data_type: TYPE_STRING dims: 1 }', '{ name: "score" data_type: TYPE_FP64 dims: 1 }'
    for field in fields:
        assert f"input {field}" in text
        assert f"output {field}" in text
    assert 'input { name: "more"' in text


@pytest.mark.slow
def test_tuples_and_named_outputs(tmp_path: Path) -> None:
    """Parts of a tuple are numbered, unless the annotation names them; `returns` names those of a dict."""
    text = config(
        tmp_path, '@conch.model\ndef f(x: int) -> tuple[str, Annotated[np.ndarray, conch.FP32(-1, name="y")]]: ...\n'
    )
    assert 'output { name: "output_0" data_type: TYPE_STRING' in text
    assert 'output { name: "y" data_type: TYPE_FP32' in text
    text = config(tmp_path, '@conch.model(returns={"y": conch.FP32(-1), "n": int})\ndef f(x: int) -> dict: ...\n')
    assert 'output { name: "y" data_type: TYPE_FP32 dims: -1 } output { name: "n" data_type: TYPE_INT64' in text


@pytest.mark.slow
def test_batches_leave_the_first_dimension_out(tmp_path: Path) -> None:
    """With Batch the annotation has the rows first, with Rows it is one row; both become max_batch_size."""
    text = config(
        tmp_path,
        '@conch.model(batch=conch.Batch(32, wait="2ms"), instances=2)\n'
        "def f(x: conch.FP32[-1, 3], words: list[str]) -> conch.FP32[-1]: ...\n",
    )
    assert "max_batch_size: 32" in text
    assert 'name: "x" data_type: TYPE_FP32 dims: 3 }' in text
    assert 'name: "words" data_type: TYPE_STRING dims: 1 }' in text
    assert 'name: "output" data_type: TYPE_FP32 dims: 1 }' in text
    assert "max_queue_delay_microseconds: 2000" in text
    assert "instance_group { count: 2 kind: KIND_CPU }" in text
    text = config(tmp_path, "@conch.model(batch=conch.Rows(8))\ndef f(x: conch.FP32[3], n: int) -> int: ...\n")
    assert "max_batch_size: 8" in text
    assert 'name: "x" data_type: TYPE_FP32 dims: 3 }' in text


@pytest.mark.slow
def test_coroutines_overlap_and_generators_stream(tmp_path: Path) -> None:
    """async def asks for calls side by side, a generator is a decoupled model."""
    text = config(tmp_path, "@conch.model(concurrency=7)\nasync def f(x: int) -> int: ...\n")
    assert 'key: "MAX_CONCURRENT_EXECUTIONS" value { string_value: "7" }' in text
    for code in (
        "def f(n: int) -> Iterator[str]:\n    yield 'a'\n",
        "async def f(n: int) -> AsyncIterator[str]:\n    yield 'a'\n",
    ):
        text = config(tmp_path, "@conch.model\n" + code)
        assert "decoupled: true" in text
        assert 'output { name: "output" data_type: TYPE_STRING dims: 1 }' in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "line", "said"),
    [
        ("@conch.model\ndef f(x) -> int: ...\n", 0, "parameter 'x' of 'f' has no annotation: write x: conch.Array["),
        ("@conch.model\ndef f(x: int): ...\n", 0, "the result of 'f' has no annotation"),
        ("@conch.model\ndef f() -> int: ...\n", 0, "'f' takes nothing"),
        ("@conch.model\ndef f(*x: int) -> int: ...\n", 0, "takes any number of values"),
        ("@conch.model\ndef f(x: np.ndarray) -> int: ...\n", 0, "is an array of unknown data type and shape"),
        ("@conch.model\ndef f(x: npt.NDArray[np.float32]) -> int: ...\n", 0, 'write conch.Array["FP32", -1]'),
        ("@conch.model\ndef f(x: complex) -> int: ...\n", 0, "is annotated as complex, expected conch.Array"),
        ("@conch.model\ndef f(x: int) -> dict: ...\n", 0, "is a dict, which does not say what it holds"),
        ("@conch.model\ndef f(x: 'Unknown') -> int: ...\n", 0, "NameError: name 'Unknown' is not defined"),
        ("@conch.model(batch=conch.Batch(4))\ndef f(x: float) -> list[int]: ...\n", 0, "write list[float], one for"),
        ("@conch.model(batch=conch.Batch(4))\ndef f(x: conch.FP32[3]) -> list[int]: ...\n", 0, "must be -1"),
        ("@conch.model\ndef f(a: int) -> int: ...\n\n@conch.model(name='f')\ndef g(a: int) -> int: ...\n", 3,
         f"there is a function 'f' in line {START} already"),
        ("x = 1\nimport nowhere_at_all\n", 1, "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(:\n", 0, "SyntaxError"),
        ("@conch.model(batch=3)\ndef f(a: int) -> int: ...\n", 0, "batch must be conch.Batch(32"),
        ("@conch.model(batch=conch.Batch(4, wait='soon'))\ndef f(a: int) -> int: ...\n", 0, 'such as "2ms"'),
        ("@conch.model(batch=conch.Rows(4))\ndef f(n: int) -> Iterator[int]:\n    yield 1\n", 0, "leave batch= out"),
        ("@conch.model\ndef f(n: int) -> int:\n    yield 1\n", 0, "must be annotated as Iterator"),
        ("@conch.model\nclass F: ...\n", 0, "goes above a function"),
        ("def f(n: int) -> int: ...\n", -START + 1, "no function is declared as a model"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_with_file_and_line(tmp_path: Path, code: str, line: int, said: str) -> None:
    """Whatever is wrong with a file, its author is told where, and what to write instead."""
    text = refusal(tmp_path, code)
    assert text.startswith(f"{START + line}: ")
    assert said in text
    assert "\n" not in text


def test_the_file_never_runs_in_the_servers_process(tmp_path: Path) -> None:
    """Signatures are read in another process, whose prints are no answer."""
    code = "import sys; print('hello'); sys.__conch_mark__ = True\n@conch.model\ndef f(a: int) -> int: ...\n"
    assert read_functions(written(tmp_path, code), "")[0].name == "f"
    assert not hasattr(sys, "__conch_mark__")


def test_a_process_that_dies_is_told_of(tmp_path: Path) -> None:
    """A file that ends its process is refused with the exit code."""
    path = written(tmp_path, "import os\nos._exit(7)\n")
    with pytest.raises(AdoptError, match="ended with exit code 7"):
        read_functions(path, "")


def test_importing_conch_is_cheap() -> None:
    """`import conch` loads neither numpy nor the rooms; the names for functions are there all the same."""
    code = (
        "import sys, conch; heavy = [m for m in sys.modules if m.startswith(('numpy', 'conch.', 'google'))]; "
        "assert not heavy, heavy; assert conch.model and conch.Batch(2).size == 2; "
        "assert not hasattr(conch, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_outlines_become_whole_configs() -> None:
    """What is not asked for is not written into the config."""
    plain: Outline = {
        "name": "f", "function": "f", "line": 1, "about": "", "mode": "request", "max_batch_size": 0, "wait_us": 0,
        "instances": 1, "concurrency": 1, "decoupled": False,
        "inputs": [{"name": "x", "datatype": "FP32", "dims": [-1], "optional": False}],
        "outputs": [{"name": "y", "datatype": "BYTES", "dims": [1], "optional": False}],
    }  # fmt: skip
    assert " ".join(format_text(function_config(plain, "g")).split()) == (
        'name: "g" input { name: "x" data_type: TYPE_FP32 dims: -1 } '
        'output { name: "y" data_type: TYPE_STRING dims: 1 } backend: "python"'
    )


@pytest.mark.parametrize(
    ("datatype", "value", "said"),
    [
        ("INT8", [1, 300], "is declared INT8, which cannot hold 300 (it goes from -128 to 127)"),
        ("INT32", 5_000_000_000, "which cannot hold 5000000000"),
        ("INT64", np.array([2**63], np.uint64), "which cannot hold 9223372036854775808"),
        ("UINT8", np.array([256], np.uint16), "which cannot hold 256"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(datatype: str, value: object, said: str) -> None:
    """numpy would cut them off without a word; those that fit are narrowed."""
    field = Field("y", datatype, () if isinstance(value, int) else (-1,), "array")
    with pytest.raises(ValueRefused) as caught:
        encode(field, value)
    assert said in str(caught.value)
    np.testing.assert_array_equal(encode(Field("y", "INT8", (-1,), "array"), [-128, 127]), [-128, 127])
