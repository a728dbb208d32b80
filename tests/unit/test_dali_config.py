"""What the DALI backend reads from configs and serialized pipelines, without DALI."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.backend.api import ModelFiles
from conch.backend.dali.backend import find_pipeline
from conch.backend.dali.described import Description, Port, UnreadableError, describe
from conch.backend.dali.options import DaliPlan, plan_dali
from conch.pb.model_config_pb2 import ModelConfig
from conch.types.error import InferError


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message of numbers and bytes, each below 128."""
    parts = [
        bytes([number << 3, value]) if isinstance(value, int) else bytes([number << 3 | 2, len(value)]) + value
        for number, value in fields
    ]
    return b"".join(parts)


def argument(name: str, value: int) -> bytes:
    return message((1, name.encode()), (2, b"int64"), (4, value))


def source(name: str, *arguments: bytes) -> bytes:
    edge = message((1, name.encode()), (2, b"cpu"))
    return message((1, b"ExternalSource"), (3, edge), *[(4, each) for each in arguments])


def config(**parameters: str) -> ModelConfig:
    made = ModelConfig(name="m", backend="dali")
    for key, value in parameters.items():
        made.parameters[key].string_value = value
    return made


def test_a_pipeline_is_described() -> None:
    """Inputs come in the order of their names; what the pipeline does not say is left open."""
    written = message(
        (1, 2),
        (2, 32),
        (5, source("b", argument("dtype", 9), argument("ndim", 3))),
        (5, source("a")),
        (5, message((1, b"Resize"), (3, message((1, b"r"), (2, b"cpu"))))),
        (7, message((1, b"out"), (2, b"cpu"), (5, 0), (6, 2))),
        (7, message((1, b"other"), (2, b"gpu"))),
    )
    assert describe(written) == Description(
        32,
        (Port("a", "", None), Port("b", "TYPE_FP32", 3)),
        (Port("out", "TYPE_UINT8", 2), Port("other", "", None)),
        gpu=True,
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_described_or_refused(content: bytes) -> None:
    """A file that is no pipeline is one exception."""
    with contextlib.suppress(UnreadableError):
        assert describe(content).outputs


def test_parameters() -> None:
    """Threads, outputs to split, plugins."""
    plan = plan_dali(
        config(num_threads="4", split_along_outer_axis="A:B"),
        {"plugin_libs": "x.so:y.so", "release_after_unload": "true"},
    )
    assert plan == DaliPlan(4, ("A", "B"), ("x.so", "y.so"))


def test_what_has_no_effect_is_named() -> None:
    """Unknown parameters and settings are accepted with a note."""
    assert plan_dali(
        config(colour="red", conch_padding="{}"), {"depth": "2", "release_after_unload": "false"}
    ).notes == (
        "--backend-config=dali,release_after_unload=false has no effect: memory ends with a model's processes",
        "model 'm': parameter 'colour' is not one that the dali backend knows, it has no effect",
        "--backend-config=dali,depth=2 has no effect, its settings are plugin_libs, release_after_unload",
    )


@pytest.mark.parametrize(
    ("parameters", "settings", "text"),
    [
        ({"num_threads": "few"}, {}, "parameter 'num_threads' of model 'm' is 'few', expected a whole number"),
        ({}, {"release_after_unload": "1"}, "backend setting 'release_after_unload' is '1', expected true or false"),
        (
            {"split_along_outer_axis": "X"},
            {},
            "parameter 'split_along_outer_axis' of model 'm' names 'X', which is no output of the model",
        ),
    ],
)
def test_values_out_of_range(parameters: dict[str, str], settings: dict[str, str], text: str) -> None:
    """What cannot be meant is refused."""
    made = config(**parameters)
    made.output.add(name="OUT")
    with pytest.raises(InferError) as caught:
        plan_dali(made, settings)
    assert caught.value.message == text


def test_no_pipeline(tmp_path: Path) -> None:
    """Both places that were looked at are named."""
    with pytest.raises(InferError, match=r"looked in the following locations: .*/1/model\.dali, .*/1/dali\.py\."):
        find_pipeline(config(), ModelFiles(tmp_path, 1))


def test_the_serialized_file_comes_first(tmp_path: Path) -> None:
    """dali.py is what is taken where the file that the config names is missing."""
    (tmp_path / "1").mkdir()
    files = ModelFiles(tmp_path, 1)
    (tmp_path / "1" / "dali.py").touch()
    assert find_pipeline(config(), files).name == "dali.py"
    (tmp_path / "1" / "model.dali").touch()
    assert find_pipeline(config(), files).name == "model.dali"
