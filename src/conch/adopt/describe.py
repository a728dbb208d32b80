"""Says what was decided of a model, and how to ask it: a short block for a terminal. Pure."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, Final

from conch.adopt.api import Entry
from conch.pb.model_config_pb2 import ModelConfig, ModelInstanceGroup
from conch.types.dtype import BY_NUMBER, DataType

#: A request with more elements than this does not fit a line.
_SHORT: Final = 64


def describe(entry: Entry, config: ModelConfig, url: str) -> str:
    """`url` is the HTTP address, such as http://127.0.0.1:8000."""
    rows = [
        ("backend", config.backend or config.platform),
        *_rows("inputs", [_tensor(config, each) for each in config.input]),
        *_rows("outputs", [_tensor(config, each) for each in config.output]),
        *_rows("batching", list(_batching(config))),
        ("instances", _instances(config)),
    ]
    rows += _rows("taken over", entry.mapped)
    rows += _rows("NOT taken", entry.unmapped)
    if config.input:
        rows.append(("try", example(config, url)))
    lines = [f"{entry.name}: {entry.what} {entry.source}", *[f"  {title:<12}{text}" for title, text in rows]]
    return "\n".join(lines)


def _rows(title: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if index else title, text) for index, text in enumerate(texts)]


def _tensor(config: ModelConfig, tensor: Any) -> str:
    kind = BY_NUMBER.get(tensor.data_type)
    optional = " (optional)" if getattr(tensor, "optional", False) else ""
    return f"{tensor.name} {kind.name if kind else '?'} {_shape(config, tensor)}{optional}"


def _shape(config: ModelConfig, tensor: Any) -> list[int]:
    return [*([-1] if config.max_batch_size > 0 else []), *tensor.dims]


def _batching(config: ModelConfig) -> Iterator[str]:
    size = config.max_batch_size
    if config.model_transaction_policy.decoupled:
        yield "none: each request may have any number of responses"
    elif size == 0:
        yield f"none: {_why_not(config)}"
    elif config.HasField("dynamic_batching"):
        delay = config.dynamic_batching.max_queue_delay_microseconds
        waits = f", waiting {delay / 1000:g} ms for more" if delay else ""
        yield f"requests that wait run together, up to {size} rows (max_batch_size){waits}"
    else:
        yield f"a request may have up to {size} rows; requests run one by one"


def _why_not(config: ModelConfig) -> str:
    tensors: list[Any] = [*config.input, *config.output]
    for tensor in tensors:
        if config.backend == "onnxruntime" and tensor.dims and tensor.dims[0] != -1:
            return (
                f"'{tensor.name}' begins with a dimension of {tensor.dims[0]}; export the model with a first dimension "
                "of any size to have its requests batched"
            )
    return "each request runs by itself (max_batch_size is 0)"


def _instances(config: ModelConfig) -> str:
    groups = [
        f"{group.count} on {ModelInstanceGroup.Kind.Name(group.kind).removeprefix('KIND_')}"
        for group in config.instance_group
    ]
    beside = config.parameters["MAX_CONCURRENT_EXECUTIONS"].string_value if _concurrent(config) else ""
    return ", ".join(groups) + (f", each with up to {beside} requests side by side" if beside else "")


def _concurrent(config: ModelConfig) -> bool:
    return "MAX_CONCURRENT_EXECUTIONS" in config.parameters


def example(config: ModelConfig, url: str) -> str:
    """A command that asks the model once, with zeros and empty texts."""
    needed = [each for each in config.input if not each.optional] or list(config.input)[:1]
    model = f"{url}/v2/models/{config.name}"
    if config.model_transaction_policy.decoupled:
        values = {each.name: _value(each) for each in needed}
        return f"curl -sN {model}/generate_stream -d {shlex.quote(json.dumps(values))}"
    elements = [math.prod(_ones(config, each)) for each in needed]
    if sum(elements) <= _SHORT:
        inputs = [_input(config, each, [_zero(each)] * count) for each, count in zip(needed, elements, strict=True)]
        return f"curl -s {model}/infer -d {shlex.quote(json.dumps({'inputs': inputs}))}"
    made = ", ".join(
        f'{json.dumps(_input(config, each, None))[:-1]}, "data": [{json.dumps(_zero(each))}] * {count}}}'
        for each, count in zip(needed, elements, strict=True)
    )
    code = f'import json; print(json.dumps({{"inputs": [{made}]}}))'
    return f"python3 -c {shlex.quote(code)} | curl -s {model}/infer -d @-"


def _input(config: ModelConfig, tensor: Any, data: list[Any] | None) -> dict[str, Any]:
    kind: DataType = BY_NUMBER[tensor.data_type]
    entry: dict[str, Any] = {"name": tensor.name, "datatype": kind.name, "shape": _ones(config, tensor)}
    return entry if data is None else {**entry, "data": data}


def _ones(config: ModelConfig, tensor: Any) -> list[int]:
    return [max(size, 1) for size in _shape(config, tensor)]


def _zero(tensor: Any) -> Any:
    kind = BY_NUMBER[tensor.data_type]
    if kind.name == "BYTES":
        return "text"
    if kind.name == "BOOL":
        return 0
    return 0.0 if kind.name in ("FP16", "FP32", "FP64", "BF16") else 0


def _value(tensor: Any) -> Any:
    count = math.prod([max(size, 1) for size in tensor.dims])
    if count == 1:
        return _zero(tensor) or 1
    return [_zero(tensor)] * count
