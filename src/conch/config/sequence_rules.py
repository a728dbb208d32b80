"""Rules of sequence batching: control tensors, strategies, implicit state."""

from __future__ import annotations

from collections.abc import Sequence

from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelSequenceBatching
from conch.types.error import invalid

_Control = ModelSequenceBatching.Control
_BOOLEAN = (_Control.CONTROL_SEQUENCE_START, _Control.CONTROL_SEQUENCE_END, _Control.CONTROL_SEQUENCE_READY)
_CORRID_TYPES = (
    DataType.TYPE_UINT64,
    DataType.TYPE_INT64,
    DataType.TYPE_UINT32,
    DataType.TYPE_INT32,
    DataType.TYPE_STRING,
)
_ANY_OF_THREE = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"


def control_tensors_have_names(config: ModelConfig) -> None:
    seen = set()
    for tensor in config.sequence_batching.control_input:
        if not tensor.name:
            raise invalid(
                f"sequence batching control tensor must have a name for {config.name}",
                "set 'name' of every control_input",
            )
        if tensor.name in seen:
            raise invalid(
                f"sequence batching control tensor '{tensor.name}' is specified for multiple control kinds for "
                f"{config.name}",
                "give each control a tensor of its own",
            )
        seen.add(tensor.name)


def controls_are_given_once(config: ModelConfig) -> None:
    seen = set()
    for control in _controls(config):
        if control.kind in seen:
            raise invalid(
                f"sequence batching specifies multiple {_kind(control)} tensors for {config.name}", "keep one of them"
            )
        seen.add(control.kind)


def boolean_controls_have_two_values(config: ModelConfig) -> None:
    for control in _controls(config):
        if control.kind not in _BOOLEAN:
            continue
        given = {name: values for name, values in _false_true(control).items() if values}
        end = f"for {_kind(control)} for {config.name}"
        if not given:
            raise invalid(
                f"sequence batching must specify either {_ANY_OF_THREE} {end}",
                "give the values for false and true, such as int32_false_true: [ 0, 1 ]",
            )
        if len(given) > 1:
            raise invalid(
                "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
                f"'bool_false_true' {end}",
                f"keep one of {', '.join(given)}",
            )
        for name, values in given.items():
            if len(values) != 2:
                raise invalid(
                    f"sequence batching control '{name}' must have exactly 2 entries {end}",
                    f"write {name}: [ <value for false>, <value for true> ]",
                )


def correlation_id_has_a_type(config: ModelConfig) -> None:
    for control in _controls(config):
        if control.kind != _Control.CONTROL_SEQUENCE_CORRID:
            continue
        if any(_false_true(control).values()):
            raise invalid(
                f"sequence batching must not specify either {_ANY_OF_THREE} for CONTROL_SEQUENCE_CORRID for "
                f"{config.name}",
                "a correlation ID has only 'data_type'",
            )
        if control.data_type not in _CORRID_TYPES:
            raise invalid(
                f"unexpected data type for control CONTROL_SEQUENCE_CORRID for {config.name}. Allowed data types are "
                "TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
                "set 'data_type' of the control",
            )


def preferred_sizes_fit(config: ModelConfig) -> None:
    for size in config.sequence_batching.oldest.preferred_batch_size:
        if size <= 0:
            raise invalid(
                f"sequence batching preferred batch size must be positive for {config.name}", "remove it from the list"
            )
        if size > config.max_batch_size:
            raise invalid(
                f"sequence batching preferred batch size must be <= max batch size for {config.name}",
                f"raise max_batch_size from {config.max_batch_size} to {size}, or prefer smaller batches",
            )


def slot_utilization_is_a_share(config: ModelConfig) -> None:
    if not 0.0 <= config.sequence_batching.direct.minimum_slot_utilization <= 1.0:
        raise invalid(
            f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {config.name}",
            "it is the share of slots to fill, such as 0.5",
        )


def initial_states_suit_states(config: ModelConfig) -> None:
    for state in config.sequence_batching.state:
        name = state.input_name
        if len(state.initial_state) > 1:
            raise invalid(
                f"initial_state field for state input '{name}' must contain exactly one or zero element. "
                f"Found '{len(state.initial_state)}' elements.",
                "keep one of them",
            )
        for initial in state.initial_state:
            _check_initial_state(state, initial)


def _check_initial_state(state: ModelSequenceBatching.State, initial: ModelSequenceBatching.InitialState) -> None:
    name = state.input_name
    if initial.data_type != state.data_type:
        raise invalid(
            f"The data type used for 'initial_state' field of state '{name}' does not match the state data type.",
            f"set its data_type to {DataType.Name(state.data_type)}",
        )
    if not initial.name:
        raise invalid(
            f"Field 'name' must be set when using initial_state for state input '{name}'.", "any name will do"
        )
    if any(dim < 0 for dim in initial.dims):
        raise invalid(
            f"'initial_state' field for state input name '{name}' contains variable dimensions.",
            "write sizes instead of -1",
        )
    if len(initial.dims) != len(state.dims):
        raise invalid(
            f"Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input "
            f"'{name}'. {len(initial.dims)} != {len(state.dims)}",
            "both describe the same tensor, without the batch dimension",
        )
    for given, wanted in zip(initial.dims, state.dims, strict=True):
        if wanted not in (-1, given):
            raise invalid(
                f"'initial_state' dim for input name '{name}' doesn't match 'state' dim description. "
                f"{given} != {wanted}",
                f"write {wanted} into the dims of its initial_state",
            )
    if initial.WhichOneof("state_data") is None:
        raise invalid(
            f"initial_state setting expects state'{name}' to have state_data set", "set zero_data or data_file"
        )


def _controls(config: ModelConfig) -> list[ModelSequenceBatching.Control]:
    return [control for tensor in config.sequence_batching.control_input for control in tensor.control]


def _kind(control: ModelSequenceBatching.Control) -> str:
    return _Control.Kind.Name(control.kind)


def _false_true(control: ModelSequenceBatching.Control) -> dict[str, Sequence[float]]:
    return {
        "int32_false_true": control.int32_false_true,
        "fp32_false_true": control.fp32_false_true,
        "bool_false_true": control.bool_false_true,
    }


def states_have_names(config: ModelConfig) -> None:
    for state in config.sequence_batching.state:
        missing = next(
            (field for field in ("input_name", "output_name", "data_type", "dims") if not getattr(state, field)), None
        )
        if missing is not None:
            raise invalid(
                f"sequence batching state '{state.input_name or state.output_name}' must specify '{missing}' for "
                f"{config.name}",
                "a state has input_name, output_name, data_type and dims",
            )


def hidden_tensors_are_apart(config: ModelConfig) -> None:
    """What the server sends to the model must not be something that clients send, too."""
    seen = {tensor.name for tensor in config.input}
    batching = config.sequence_batching
    for name in [each.name for each in batching.control_input] + [each.input_name for each in batching.state]:
        if name in seen:
            raise invalid(
                f"sequence batching tensor '{name}' is specified more than once among the inputs, controls and states "
                f"of {config.name}",
                "the server makes controls and states: do not list them under 'input'",
            )
        seen.add(name)
    outputs: set[str] = set()
    for state in batching.state:
        if state.output_name in outputs:
            raise invalid(
                f"sequence batching state output '{state.output_name}' is specified more than once for {config.name}",
                "give each state an output of its own",
            )
        outputs.add(state.output_name)


RULES = (
    control_tensors_have_names,
    controls_are_given_once,
    boolean_controls_have_two_values,
    correlation_id_has_a_type,
    preferred_sizes_fit,
    slot_utilization_is_a_share,
    states_have_names,
    initial_states_suit_states,
    hidden_tensors_are_apart,
)
