"""The tensors that a sequence model has and its clients do not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from conch.config.sequence_tensors import sequence_tensors, with_hidden_entries, with_hidden_tensors
from conch.config.spec import model_spec
from conch.pb.model_config_pb2 import ModelConfig
from conch.schedule.sequence_controls import Controls
from conch.schedule.sequence_life import START, Sequence
from conch.types.error import InferError
from support.requests import make_form, make_request

STATE = 'state { input_name: "i" output_name: "o" data_type: TYPE_%s dims: [ %s ] %s }'


def config(inside: str, batch: int = 4) -> ModelConfig:
    made = ModelConfig(name="m", max_batch_size=batch)
    made.input.add(name="x", data_type=11, dims=[2])
    made.output.add(name="y", data_type=11, dims=[2])
    text_format.Parse(inside, made.sequence_batching)
    return made


def control(kind: str, values: str) -> str:
    return f'control_input {{ name: "c" control {{ kind: CONTROL_SEQUENCE_{kind} {values} }} }}'


def seen(inside: str, name: int | str, flags: int = 0, batch: int = 4) -> tuple[bytes, tuple[int, ...]]:
    """The bytes and the shape of the one control for a request of the sequence `name`."""
    made = config(inside, batch)
    controls = Controls(model_spec(made, 1), sequence_tensors(made, Path()))
    sequence = Sequence(name)
    form = make_form(correlation_id=name, flags=flags)
    sequence.running = make_request(form)
    request = controls.request(sequence, sequence.running.sink)
    assert request.form.correlation_id == name
    return bytes(request.data[-1]), request.form.shapes[-1]


@pytest.mark.parametrize(
    ("type", "name", "wanted"),
    [
        ("UINT64", 2**64 - 1, b"\xff" * 8),
        ("INT64", 2**63 + 1, b"\x01" + bytes(6) + b"\x80"),
        ("UINT32", 2**32 + 5, b"\x05\0\0\0"),
        ("INT32", 2**64 - 1, b"\xff" * 4),
        ("STRING", "ann", b"\x03\0\0\0ann"),
        ("STRING", "\u00e9", b"\x02\0\0\0\xc3\xa9"),
    ],
)
def test_ids_of_each_type(type: str, name: int | str, wanted: bytes) -> None:
    """Smaller types keep the low bits; strings are BYTES elements."""
    assert seen(control("CORRID", f"data_type: TYPE_{type}"), name) == (wanted, (1, 1))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ("int32_false_true: [ 3, -7 ]", (np.int32(3), np.int32(-7))),
        ("fp32_false_true: [ 0.25, 2 ]", (np.float32(0.25), np.float32(2))),
        ("bool_false_true: [ true, false ]", (np.bool_(1), np.bool_(0))),
    ],
)
@pytest.mark.parametrize("batch", [0, 4])
def test_values_of_each_type(values: str, wanted: tuple[np.generic, np.generic], batch: int) -> None:
    """What stands for false and true is the config's matter; without a batch dimension the shape is [1]."""
    shape = (1, 1) if batch else (1,)
    false, true = wanted
    assert seen(control("START", values), 1, 0, batch) == (false.tobytes(), shape)
    assert seen(control("START", values), 1, START, batch) == (true.tobytes(), shape)
    assert seen(control("END", values), 1, START, batch) == (false.tobytes(), shape)
    assert seen(control("END", values), 1, 2, batch) == (true.tobytes(), shape)
    assert seen(control("READY", values), 1, 0, batch) == (true.tobytes(), shape)


def test_backends_see_what_clients_do_not() -> None:
    """Controls and states follow the inputs, states the outputs; those that are listed are there once."""
    made = config(control("START", "int32_false_true: [ 0, 1 ]") + STATE % ("FP32", "-1", ""))
    spec = with_hidden_tensors(model_spec(made, 1), made)
    assert [tensor.name for tensor in spec.inputs] == ["x", "c", "i"]
    assert [tensor.name for tensor in spec.outputs] == ["y", "o"]
    assert [entry.name for entry in with_hidden_entries(made).input] == ["x", "c", "i"]
    assert len(made.input) == 1
    made.output.add(name="o", data_type=11, dims=[-1])
    assert [tensor.name for tensor in with_hidden_tensors(model_spec(made, 1), made).outputs] == ["y", "o"]


@pytest.mark.parametrize(
    ("inside", "shape", "data"),
    [
        (STATE % ("FP32", "2, -1", ""), (2, 1), bytes(8)),
        (STATE % ("STRING", "2", ""), (2,), bytes(8)),
        (STATE % ("INT8", "-1", 'initial_state { name: "n" data_type: TYPE_INT8 dims: [ 3 ] zero_data: true }'), (3,),
         bytes(3)),
        (STATE % ("INT8", "-1", 'initial_state { name: "n" data_type: TYPE_INT8 dims: [ 3 ] data_file: "f" }'), (3,),
         b"abc"),
    ],
)  # fmt: skip
def test_initial_states(tmp_path: Path, inside: str, shape: tuple[int, ...], data: bytes) -> None:
    """Zeros, with one for open sizes, unless the config says otherwise; of a file, what is needed."""
    (tmp_path / "initial_state").mkdir()
    (tmp_path / "initial_state" / "f").write_bytes(b"abcdef")
    (state,) = sequence_tensors(config(inside), tmp_path).states
    assert (state.shape, state.data) == (shape, data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short", "initial_state setting expects 12 bytes, but the data provided from shortonly has 5 bytes."),
        ("missing", "failed to read initial state file '.*missing' of state input 'i' of model 'm': No such file"),
        ("../config.pbtxt", "initial state file '../config.pbtxt' of model 'm' is outside"),
    ],
)
def test_files_of_initial_states(tmp_path: Path, name: str, message: str) -> None:
    """They lie in the model's folder, and are long enough."""
    (tmp_path / "initial_state").mkdir()
    (tmp_path / "initial_state" / "short").write_bytes(b"abcde")
    initial = f'initial_state {{ name: "n" data_type: TYPE_FP32 dims: [ 3 ] data_file: "{name}" }}'
    with pytest.raises(InferError, match=message):
        sequence_tensors(config(STATE % ("FP32", "3", initial)), tmp_path)
