"""Which argument of `forward` an input of the config is, and which of its results an output: Triton's rules. Pure.

Inputs go by the arguments' names where all have one, else by `<name>__<index>` where all have that, else by their order
in the config. Outputs go by `<name>__<index>`, else by their order; those of programs whose results have names go by
these, and dictionaries by their keys. Nothing but types of ours is imported: worker processes use this too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conch.backend.torch.signature import Holds, Signature
from conch.types.error import InferError, internal, invalid


@dataclass(frozen=True)
class Wanted:
    """The names that a config has. `hidden` are inputs that the server makes (controls and states of sequences,
    `batch_input`), `states` those of them that are states, `state_outputs` what these come from."""

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    state_outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bindings:
    """`inputs`: name -> index of the argument. `outputs`: name -> index of the result; -1 where only a key will do."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    warnings: tuple[str, ...] = ()


def bind(wanted: Wanted, signature: Signature) -> Bindings:
    """Raises InferError for a config that cannot be the model's."""
    if not wanted.inputs:
        raise internal("model configuration must contain at least one input, none were specified.")
    if not wanted.outputs:
        raise internal("model configuration must contain at least one output, none were specified.")
    inputs, input_warnings = _inputs(wanted, signature)
    outputs, output_warnings = _outputs(wanted, signature)
    return Bindings(inputs, outputs, (*input_warnings, *output_warnings))


def every_argument(arguments: Mapping[int, Any], signature: Signature) -> list[Any]:
    """Raises InferError where a request has left one out."""
    missing = [each.name for index, each in enumerate(signature.arguments) if index not in arguments]
    if missing:
        raise invalid(
            f"the request has no input for the argument '{missing[0]}', which the model needs",
            "send it, and take 'optional' out of the config",
        )
    return [arguments[index] for index in range(len(signature.arguments))]


def position(name: str) -> int | None:
    """The index in `<name>__<index>`; None for other names."""
    _, mark, number = name.partition("__")
    return int(number) if mark and number.isdecimal() and number.isascii() else None


def _inputs(wanted: Wanted, signature: Signature) -> tuple[dict[str, int], list[str]]:
    every = (*wanted.inputs, *wanted.hidden)
    if signature.dictionary:
        return {name: index for index, name in enumerate(every)}, []
    _check_count(wanted, signature)
    known = {
        name: index for index, each in enumerate(signature.arguments) for name in (each.name, *each.aliases)
    }  # fmt: skip
    warnings: list[str] = []
    if all(name in known for name in wanted.inputs):
        found = {name: known[name] for name in wanted.inputs}
    elif all(position(name) is not None for name in wanted.inputs):
        found = {name: _index(name) for name in wanted.inputs}
    else:
        odd = next(name for name in wanted.inputs if name not in known)
        warning = (
            f"input '{odd}' or previous input(s) are neither an input argument to the model '{wanted.model}' nor do "
            "they follow the <name>__<index> naming convention. Falling back to enforcing strict ordering from model "
            f"configuration. (its arguments are: {_names(signature)})"
        )
        warnings = [warning]
        found = {name: index for index, name in enumerate(wanted.inputs)}
    for place, name in enumerate(wanted.hidden):
        found[name] = _hidden(wanted, name, known, len(wanted.inputs) + place)
    _check_places(wanted, signature, found)
    return found, warnings


def _hidden(wanted: Wanted, name: str, known: dict[str, int], order: int) -> int:
    """Triton wants `<name>__<index>` here; the argument's name is as clear."""
    if name in known:
        return known[name]
    index = position(name)
    if index is not None:
        return index
    if name in wanted.states:
        raise invalid(
            f"PyTorch model '{wanted.model}' is using sequence batching with state but state '{name}' does not follow "
            "the <name>__<index> naming convention. ",
            f"name it after an argument of forward ({', '.join(known)}), or INPUT__{order}",
        )
    raise internal(
        f"input '{name}' does not follow <name>__<index> naming convention.",
        f"name it after an argument of forward ({', '.join(known)}), or INPUT__{order}",
    )


def _check_count(wanted: Wanted, signature: Signature) -> None:
    given = len(wanted.inputs) + len(wanted.hidden)
    required = sum([each.required for each in signature.arguments])
    if not required <= given <= len(signature.arguments):
        raise invalid(
            f"unable to load model '{wanted.model}', configuration expects {given} inputs, "
            f"model provides {len(signature.arguments)}",
            f"the arguments of its forward are: {_names(signature)}",
        )


def _check_places(wanted: Wanted, signature: Signature, found: dict[str, int]) -> None:
    owner: dict[int, str] = {}
    for name, index in found.items():
        if index >= len(signature.arguments):
            raise invalid(
                f"unable to load model '{wanted.model}', input '{name}' names argument {index}, "
                f"model provides {len(signature.arguments)}",
                f"the arguments of its forward are, from 0: {_names(signature)}",
            )
        if owner.setdefault(index, name) != name:
            raise invalid(
                f"unable to load model '{wanted.model}', inputs '{owner[index]}' and '{name}' share argument {index}",
                f"the arguments of its forward are, from 0: {_names(signature)}",
            )
    missing = [
        each.name for index, each in enumerate(signature.arguments) if each.required and index not in owner
    ]  # fmt: skip
    if missing:
        raise invalid(
            f"unable to load model '{wanted.model}', no input of the configuration is the argument '{missing[0]}'",
            f"the arguments of its forward are, from 0: {_names(signature)}",
        )


def _outputs(wanted: Wanted, signature: Signature) -> tuple[dict[str, int], list[str]]:
    every = tuple(dict.fromkeys((*wanted.outputs, *wanted.state_outputs)))
    if signature.results is not None:
        known = {name: n for n, each in enumerate(signature.results) for name in (each.name, *each.aliases)}
        if all(name in known for name in every):
            return {name: known[name] for name in every}, []
    found, warnings = _ordered(wanted.outputs, wanted.model)
    for name in wanted.state_outputs:
        index = position(name)
        if index is None:
            raise invalid(
                f"PyTorch model '{wanted.model}' is using sequence batching with state but state '{name}' does not "
                "follow the <name>__<index> naming convention. ",
                "such as OUTPUT__1 for the second result of forward",
            )
        found[name] = index
    if signature.results is not None:
        for name, index in found.items():
            if index >= len(signature.results):
                raise no_output(name, len(signature.results), (each.name for each in signature.results))
    return found, warnings


def _ordered(names: Sequence[str], model: str) -> tuple[dict[str, int], list[str]]:
    places = {name: position(name) for name in names}
    if all(place is not None for place in places.values()):
        return {name: place or 0 for name, place in places.items()}, []
    # Triton warns only of names that have a mark and no number behind it.
    odd = [name for name in names if "__" in name and places[name] is None]
    warnings = [
        f"output '{name}' or previous output(s) of the model '{model}' do not follow the <name>__<index> naming "
        "convention. Falling back to enforcing strict ordering from model configuration."
        for name in odd[:1]
    ]
    return {name: index for index, name in enumerate(names)}, warnings


def no_output(name: str, count: int, names: Iterable[str] = ()) -> InferError:
    known = ", ".join(names)
    return invalid(
        f"The output {name} in the model configuration refers to an output index which doesn't exist. "
        f"This model has {count} outputs",
        f"they are: {known}" if known else f"they are numbered from 0: OUTPUT__0 to OUTPUT__{max(0, count - 1)}",
    )


def _index(name: str) -> int:
    return position(name) or 0


def _names(signature: Signature) -> str:
    return ", ".join(
        each.name if each.holds is Holds.TENSOR else f"{each.name} ({each.holds.value})" for each in signature.arguments
    )
