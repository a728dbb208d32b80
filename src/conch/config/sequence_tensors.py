"""The tensors of a sequence model that its clients do not see: controls and implicit state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from conch.pb.model_config_pb2 import ModelConfig, ModelSequenceBatching
from conch.types.dtype import BOOL, BY_NUMBER, BYTES, FP32, INT32, DataType
from conch.types.error import invalid
from conch.types.model import ModelSpec, SequenceSpec, TensorSpec

_Control = ModelSequenceBatching.Control
START: Final = _Control.CONTROL_SEQUENCE_START
READY: Final = _Control.CONTROL_SEQUENCE_READY
END: Final = _Control.CONTROL_SEQUENCE_END
CORRID: Final = _Control.CONTROL_SEQUENCE_CORRID
#: Bytes that one sequence may begin with: nobody means more, and each sequence has its own.
_LARGEST: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Control:
    """One control tensor, of one element. `false` and `true` are its bytes; a correlation id has none of its own."""

    name: str
    kind: int
    datatype: DataType
    false: bytes = b""
    true: bytes = b""


@dataclass(frozen=True, slots=True)
class State:
    """One implicit state: the output that becomes the input. `shape` and `data` are what a sequence begins with.

    No shape here has a batch dimension.
    """

    input: str
    output: str
    datatype: DataType
    dims: tuple[int, ...]
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class SequenceTensors:
    """In the order in which they follow the client's inputs: controls, then states."""

    controls: tuple[Control, ...]
    states: tuple[State, ...]


def sequence_tensors(config: ModelConfig, directory: Path) -> SequenceTensors:
    """Reads the initial states from the model's folder. Raises InferError."""
    states = []
    for state in config.sequence_batching.state:
        shape, data = _initial(config.name, state, directory)
        states.append(
            State(state.input_name, state.output_name, _datatype(state), tuple(state.dims), tuple(shape), data)
        )
    return SequenceTensors(tuple(controls(config)), tuple(states))


def sequence_spec(config: ModelConfig) -> SequenceSpec | None:
    """None for a model without sequence batching."""
    if not config.HasField("sequence_batching"):
        return None
    corrid = next((each for each in controls(config) if each.kind == CORRID), None)
    return SequenceSpec(
        TensorSpec(corrid.name, corrid.datatype, (1,)) if corrid is not None else None,
        config.sequence_batching.iterative_sequence,
    )


def hidden_inputs(config: ModelConfig) -> frozenset[str]:
    """Names of the inputs that are not the client's."""
    batching = config.sequence_batching
    return frozenset([each.name for each in batching.control_input] + [each.input_name for each in batching.state])


def hidden_outputs(config: ModelConfig) -> frozenset[str]:
    """Names of the state outputs, those included that clients may ask for."""
    return frozenset([each.output_name for each in config.sequence_batching.state])


def with_hidden_tensors(spec: ModelSpec, config: ModelConfig) -> ModelSpec:
    """`spec` as the backend sees it: the controls and states after the client's inputs, the states after its outputs.

    A state that is listed as an output is there once.
    """
    if not config.HasField("sequence_batching"):
        return spec
    inputs = [TensorSpec(each.name, each.datatype, (1,)) for each in controls(config)]
    outputs = []
    known = {output.name for output in spec.outputs}
    for state in config.sequence_batching.state:
        inputs.append(TensorSpec(state.input_name, _datatype(state), tuple(state.dims)))
        if state.output_name not in known:
            outputs.append(TensorSpec(state.output_name, _datatype(state), tuple(state.dims)))
    return replace(spec, inputs=(*spec.inputs, *inputs), outputs=(*spec.outputs, *outputs))


def with_hidden_entries(config: ModelConfig) -> ModelConfig:
    """As `with_hidden_tensors`, for backends that compare a config with a file. `config` stays as it is."""
    if not config.HasField("sequence_batching"):
        return config
    whole = ModelConfig()
    whole.CopyFrom(config)
    for control in controls(config):
        whole.input.add(name=control.name, data_type=control.datatype.number, dims=[1])
    known = {output.name for output in config.output}
    for state in config.sequence_batching.state:
        whole.input.add(name=state.input_name, data_type=state.data_type, dims=state.dims)
        if state.output_name not in known:
            whole.output.add(name=state.output_name, data_type=state.data_type, dims=state.dims)
    return whole


def controls(config: ModelConfig) -> Iterator[Control]:
    """The control tensors in the order of the (checked) config."""
    for tensor in config.sequence_batching.control_input:
        for control in tensor.control:
            if control.kind == CORRID:
                yield Control(tensor.name, CORRID, BY_NUMBER[control.data_type])
            elif control.int32_false_true:
                yield _boolean(tensor.name, control, INT32, control.int32_false_true)
            elif control.fp32_false_true:
                yield _boolean(tensor.name, control, FP32, control.fp32_false_true)
            else:
                yield _boolean(tensor.name, control, BOOL, control.bool_false_true)


def _boolean(name: str, control: ModelSequenceBatching.Control, datatype: DataType, values: object) -> Control:
    false, true = np.array(values, dtype=datatype.numpy)
    return Control(name, control.kind, datatype, false.tobytes(), true.tobytes())


def _datatype(state: ModelSequenceBatching.State) -> DataType:
    datatype = BY_NUMBER.get(state.data_type)
    if datatype is None:
        raise invalid(f"state input '{state.input_name}' must specify 'data_type'", "such as data_type: TYPE_FP32")
    return datatype


def _initial(name: str, state: ModelSequenceBatching.State, directory: Path) -> tuple[list[int], bytes]:
    """Shape and bytes that a sequence begins with: as the config says, else zeros, with one for open sizes."""
    datatype = _datatype(state)
    shape = [1 if dim < 0 else dim for dim in state.dims]
    if state.initial_state:
        shape = list(state.initial_state[0].dims)
    # An element of BYTES that is empty is four zero bytes.
    size = math.prod(shape) * (4 if datatype is BYTES else datatype.size)
    if size > _LARGEST:
        raise invalid(
            f"state input '{state.input_name}' of model '{name}' begins with {size} bytes, more than {_LARGEST}",
            f"its shape is {shape} and its type {datatype.config_name}",
        )
    if not state.initial_state or state.initial_state[0].WhichOneof("state_data") != "data_file":
        return shape, bytes(size)
    folder = (directory / "initial_state").resolve()
    path = (folder / state.initial_state[0].data_file).resolve()
    if not path.is_relative_to(folder):
        raise invalid(
            f"initial state file '{state.initial_state[0].data_file}' of model '{name}' is outside {folder}",
            "put the file into the folder initial_state of the model and write its name alone",
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise invalid(
            f"failed to read initial state file '{path}' of state input '{state.input_name}' of model '{name}': "
            f"{error.strerror}",
            "initial states lie in the folder initial_state of the model, beside its versions",
        ) from error
    if len(data) < size:
        raise invalid(
            f"initial_state setting expects {size} bytes, but the data provided from "
            f"{state.initial_state[0].data_file}only has {len(data)} bytes.",
            f"{datatype.config_name} of shape {shape} takes {size} bytes",
        )
    return shape, data if datatype is BYTES else data[:size]
