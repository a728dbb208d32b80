"""The parameter `conch_padding`: which inputs the server pads, read and checked. Pure.

Its `string_value` is JSON:

    {
      "inputs":    {"input_ids": {"axis": 1, "value": 0, "buckets": [16, 32, 64, 128]}},
      "mask":      {"name": "attention_mask", "like": "input_ids", "axis": 1, "real": 1},
      "outputs":   {"last_hidden_state": {"axis": 1, "like": "input_ids"}},
      "max_waste": 0.2
    }

Only `inputs` with an `axis` each is required. Axes are counted in the shapes that clients see, the batch dimension
included; a negative one from the end. `value` is 0, `real` 1, a mask's `axis` that of its input, and `like` the only
padded input unless given. `mask` may be a list. Without `buckets` the longest request of a batch decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from conch.config.said import read_json
from conch.config.shown import shown
from conch.pb.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelOutput
from conch.types.dtype import BF16, BOOL, BY_NUMBER
from conch.types.error import InferError, invalid
from conch.types.padding import Cut, Mask, PaddedInput, Padding

PARAMETER: Final = "conch_padding"
Json = Any

_EXAMPLE: Final = '{"inputs": {"input_ids": {"axis": 1, "buckets": [16, 32, 64]}}}'


def padding_of(config: ModelConfig) -> Padding | None:
    """What `config`, which is complete, declares. Raises InferError (INVALID_ARG) that names the field."""
    if PARAMETER not in config.parameters:
        return None
    return _Reader(config).read(config.parameters[PARAMETER].string_value)


def made_inputs(config: ModelConfig) -> frozenset[str]:
    """The inputs that the server makes where requests leave them out."""
    padding = padding_of(config)
    return frozenset() if padding is None else frozenset([mask.name for mask in padding.masks])


def padding_is_sound(config: ModelConfig) -> None:
    padding_of(config)


class _Reader:
    def __init__(self, config: ModelConfig) -> None:
        self._model = config.name
        self._config = config
        self._lead = 1 if config.max_batch_size > 0 else 0

    def read(self, text: str) -> Padding:
        given = read_json(text, lambda what, hint: self._bad("", what, hint), f"write {_EXAMPLE}")
        self._keys(given, "", {"inputs", "mask", "outputs", "max_waste"})
        self._refuse_company()
        inputs = self._inputs(given.get("inputs"))
        masks = given.get("mask", [])
        masks = [
            self._mask(each, f"mask[{n}]" if isinstance(masks, list) else "mask", inputs)
            for n, each in enumerate(masks if isinstance(masks, list) else [masks])
        ]
        names = [each.name for each in (*inputs, *masks)]
        for name in names:
            if names.count(name) > 1:
                raise self._bad("mask", f"names '{name}', which is padded or a mask already", "name each input once")
        return Padding(
            inputs, tuple(masks), self._outputs(given.get("outputs", {}), inputs), self._waste(given, inputs)
        )

    # ---- the parts

    def _inputs(self, given: Json) -> tuple[PaddedInput, ...]:
        if not isinstance(given, dict) or not given:
            raise self._bad("inputs", f"is {shown(given)}, expected the inputs to pad by name", f"write {_EXAMPLE}")
        padded = []
        for name, rule in given.items():
            path = f"inputs.{name}"
            position, tensor = self._input(name, path)
            self._keys(rule, path, {"axis", "value", "buckets"})
            axis = self._axis(rule.get("axis"), path, tensor)
            value = self._number(rule.get("value", 0), f"{path}.value", tensor)
            padded.append(PaddedInput(name, position, axis, value, self._buckets(rule.get("buckets", []), path)))
        return tuple(padded)

    def _mask(self, given: Json, path: str, inputs: tuple[PaddedInput, ...]) -> Mask:
        self._keys(given, path, {"name", "like", "axis", "real"})
        position, tensor = self._input(given.get("name"), path)
        like = self._like(given, path, inputs)
        if self._config.input[inputs[like].position].optional:
            raise self._bad(
                path,
                f"belongs to the optional input '{inputs[like].name}'",
                "a mask needs an input that is always there",
            )
        axis = self._axis(given.get("axis", inputs[like].axis), path, tensor)
        others = [size for n, size in enumerate(tensor.dims) if n != axis - self._lead]
        if -1 in others:
            raise self._bad(
                path,
                f"names input '{tensor.name}' with dims {list(tensor.dims)}, expected -1 at its axis alone",
                "the server cannot know the other sizes of a mask that it makes",
            )
        return Mask(tensor.name, position, axis, like, self._number(given.get("real", 1), f"{path}.real", tensor))

    def _outputs(self, given: Json, inputs: tuple[PaddedInput, ...]) -> Mapping[str, Cut]:
        if not isinstance(given, dict):
            raise self._bad(
                "outputs", f"is {shown(given)}, expected the outputs to cut by name", 'such as {"y": {"axis": 1}}'
            )
        cuts = {}
        for name, rule in given.items():
            path = f"outputs.{name}"
            found = [each for each in self._config.output if each.name == name]
            if not found:
                known = ", ".join([each.name for each in self._config.output])
                raise self._bad(path, "is no output of the model", f"the outputs are: {known}")
            self._keys(rule, path, {"axis", "like"})
            self._refuse_strings(found[0], path)
            cuts[name] = Cut(self._axis(rule.get("axis"), path, found[0]), self._like(rule, path, inputs))
        return cuts

    def _waste(self, given: Mapping[str, Json], inputs: tuple[PaddedInput, ...]) -> float:
        waste = given.get("max_waste", 0)
        if isinstance(waste, bool) or not isinstance(waste, int | float) or not 0 <= waste < 1:
            raise self._bad(
                "max_waste", f"is {shown(waste)}, expected a share from 0 up to, not including, 1", "such as 0.2"
            )
        if waste and not all(each.buckets for each in inputs):
            raise self._bad("max_waste", "needs buckets for every input in 'inputs'", "give 'buckets', or remove it")
        return float(waste)

    def _refuse_company(self) -> None:
        """What decides batches by another rule, and what is no single model."""
        config = self._config
        batching = config.dynamic_batching
        for present, field in (
            (config.HasField("sequence_batching"), "sequence_batching"),
            (config.HasField("ensemble_scheduling"), "ensemble_scheduling"),
            (batching.priority_levels > 0, "dynamic_batching.priority_levels"),
        ):
            if present:
                raise self._bad("", f"does not go together with '{field}'", "remove one of the two")

    # ---- the fields

    def _input(self, name: Json, path: str) -> tuple[int, ModelInput]:
        for position, tensor in enumerate(self._config.input):
            if tensor.name == name:
                self._refuse_strings(tensor, path)
                for field, present in (
                    ("reshape", tensor.HasField("reshape")),
                    ("allow_ragged_batch", tensor.allow_ragged_batch),
                ):
                    if present:
                        raise self._bad(
                            path, f"names an input with '{field}', which cannot be padded", f"remove '{field}'"
                        )
                return position, tensor
        known = ", ".join([each.name for each in self._config.input])
        raise self._bad(path, f"names {shown(name)}, which is no input of the model", f"the inputs are: {known}")

    def _axis(self, axis: Json, path: str, tensor: ModelInput | ModelOutput) -> int:
        rank = len(tensor.dims) + self._lead
        if isinstance(axis, bool) or not isinstance(axis, int) or not -rank <= axis < rank:
            raise self._bad(
                f"{path}.axis",
                f"is {shown(axis)}, expected a whole number from {self._lead} to {rank - 1}",
                "axes are counted in the shape that clients send, the batch dimension included",
            )
        axis %= rank
        if axis < self._lead:
            raise self._bad(f"{path}.axis", "is 0, the batch dimension", f"give one from 1 to {rank - 1}")
        if tensor.dims[axis - self._lead] != -1:
            raise self._bad(
                f"{path}.axis",
                f"is {axis}, where '{tensor.name}' has the fixed size {tensor.dims[axis - self._lead]}",
                f"only a size of -1 in dims {list(tensor.dims)} can vary",
            )
        return int(axis)

    def _buckets(self, given: Json, path: str) -> tuple[int, ...]:
        sizes = given if isinstance(given, list) else [None]
        sound = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
        if not sound or sizes != sorted(set(sizes)):
            raise self._bad(
                f"{path}.buckets",
                f"is {shown(given)}, expected whole numbers above 0, ascending",
                "such as [16, 32, 64]",
            )
        return tuple(sizes)

    def _like(self, given: Mapping[str, Json], path: str, inputs: tuple[PaddedInput, ...]) -> int:
        names = [each.name for each in inputs]
        like = given.get("like", names[0] if len(names) == 1 else None)
        if like not in names:
            raise self._bad(
                f"{path}.like", f"is {shown(like)}, expected one of {', '.join(names)}", "name a padded input"
            )
        return names.index(like)

    def _number(self, value: Json, path: str, tensor: ModelInput) -> float:
        """`value`, which an element of `tensor` must be able to hold."""
        datatype = BY_NUMBER[tensor.data_type]
        if datatype is BOOL and isinstance(value, bool):
            return value
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self._bad(path, f"is {shown(value)}, expected a number", "such as 0")
        if datatype is BF16 and value not in (0, 1):
            raise self._bad(path, f"is {shown(value)}, expected 0 or 1 for an input of TYPE_BF16", "write 0")
        if datatype.numpy.kind in "iub" and datatype is not BF16:
            low, high = _range(datatype.numpy)
            if value != int(value) or not low <= value <= high:
                kind = datatype.config_name
                raise self._bad(
                    path, f"is {shown(value)}, expected a whole number from {low} to {high} for {kind}", "write 0"
                )
            return int(value)
        return value

    def _refuse_strings(self, tensor: ModelInput | ModelOutput, path: str) -> None:
        if tensor.data_type == DataType.TYPE_STRING:
            raise self._bad(
                path, f"names '{tensor.name}' of TYPE_STRING, which cannot be padded", "pad after the text is tokenized"
            )

    def _keys(self, given: Json, path: str, allowed: set[str]) -> None:
        if not isinstance(given, dict):
            raise self._bad(
                path, f"is {shown(given)}, expected an object", f"with the keys {', '.join(sorted(allowed))}"
            )
        for key in given:
            if key not in allowed:
                raise self._bad(path, f"has the unknown key '{key}'", f"keys are: {', '.join(sorted(allowed))}")

    def _bad(self, path: str, what: str, hint: str) -> InferError:
        where = f"{path} of parameter '{PARAMETER}'" if path else f"parameter '{PARAMETER}'"
        return invalid(f"{where} {what} for {self._model}", hint)


def _range(kind: Any) -> tuple[int, int]:
    """The least and the greatest whole number of a numpy type of bool or integers."""
    if kind.kind == "b":
        return 0, 1
    bits = 8 * int(kind.itemsize)
    return (0, 2**bits - 1) if kind.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
