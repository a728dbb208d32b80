"""`pb_utils.ModelConfig`: the config as `auto_complete_config` may read and fill it."""

from __future__ import annotations

import json
from typing import Any


class ModelConfig:
    """Wraps the config's JSON. What the operator wrote wins: contradictions raise ValueError in Triton's words."""

    def __init__(self, model_config: str | bytes) -> None:
        self._config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        configured = self._config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for model "
                f"'{self._name()}' specified max_batch_size {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if scheduler in self._config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function "
                    f"for model '{self._name()}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._config.setdefault("dynamic_batching", {})

    def add_input(self, input: dict[str, Any]) -> None:
        self._add("input", input, ("name", "data_type", "dims", "optional"))

    def add_output(self, output: dict[str, Any]) -> None:
        self._add("output", output, ("name", "data_type", "dims"))

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        if set(transaction_policy_dict) - {"decoupled"}:
            raise ValueError(
                "model transaction property in auto-complete-config function for model "
                f"'{self._name()}' contains property other than 'decoupled'."
            )
        policy = self._config.setdefault("model_transaction_policy", {})
        if "decoupled" not in transaction_policy_dict:
            return
        decoupled = transaction_policy_dict["decoupled"]
        if policy.get("decoupled", decoupled) != decoupled:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name()}', "
                f"which is already set to '{policy['decoupled']}'."
            )
        policy["decoupled"] = decoupled

    def _name(self) -> str:
        return str(self._config["name"])

    def _add(self, kind: str, tensor: dict[str, Any], allowed: tuple[str, ...]) -> None:
        where = f"in auto-complete-config function for model '{self._name()}'"
        if set(tensor) - set(allowed):
            shown = ", ".join(f"'{name}'" for name in allowed[:-1]) + f" and '{allowed[-1]}'"
            raise ValueError(f"{kind} '{tensor['name']}' {where} contains property other than {shown}.")
        if "name" not in tensor:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        for required in ("data_type", "dims"):
            if required not in tensor:
                raise ValueError(f"{kind} '{tensor['name']}' {where} is missing '{required}' property.")
        tensors: list[dict[str, Any]] = self._config.setdefault(kind, [])
        for configured in tensors:
            if configured["name"] == tensor["name"]:
                self._complete(kind, configured, tensor)
                return
        tensors.append(dict(tensor))

    def _complete(self, kind: str, configured: dict[str, Any], tensor: dict[str, Any]) -> None:
        name = tensor["name"]
        data_type, dims = configured.get("data_type", "TYPE_INVALID"), configured.get("dims")
        if data_type not in {"TYPE_INVALID", tensor["data_type"]}:
            raise ValueError(
                f"unable to load model '{self._name()}', configuration expects datatype {data_type} for {kind} "
                f"'{name}', model provides {tensor['data_type']}"
            )
        if dims and _numbers(dims) != _numbers(tensor["dims"]):
            raise ValueError(
                f"model '{self._name()}', tensor '{name}': the model expects dims {tensor['dims']} but the model "
                f"configuration specifies dims {dims}"
            )
        optional = configured.get("optional", False)
        if "optional" in tensor and optional and not tensor["optional"]:
            raise ValueError(
                f"model '{self._name()}', tensor '{name}': the model expects optional {tensor['optional']} but the "
                f"model configuration specifies optional {optional}"
            )
        configured.update(tensor)


def _numbers(dims: Any) -> Any:
    """64-bit numbers are strings in some JSON of protobuf."""
    try:
        return [int(size) for size in dims]
    except (TypeError, ValueError):
        return dims
