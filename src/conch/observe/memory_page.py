"""The part of the metrics page that is about the memory budget and models that sleep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from conch.observe.metrics import join, plain


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """One version. `takes` are bytes by device (`ram`, `gpu:<n>`); while it sleeps, what it would take."""

    name: str
    version: int
    namespace: str
    state: str
    takes: Mapping[str, int]
    #: How often it was loaded because somebody asked for it, and how many seconds that took in all.
    cold_loads: int
    cold_seconds: float


_COUNTERS: Sequence[tuple[str, str, Callable[[ModelMemory], float]]] = (
    (
        "conch_model_cold_loads_total",
        "Number of loads of a model that slept, because a request came",
        lambda each: each.cold_loads,
    ),
    (
        "conch_model_cold_load_seconds_total",
        "Time that these loads took, in seconds",
        lambda each: round(each.cold_seconds, 6),
    ),
)


def render(budget: Mapping[str, int], own: Mapping[str, int], models: Sequence[ModelMemory]) -> bytes:
    """`own` is what the server itself takes. Empty where there is nothing to tell."""
    lines = []
    if budget:
        lines.append(_head("conch_memory_budget_bytes", "gauge", "Memory that models and the server may take"))
        lines += [f"conch_memory_budget_bytes{join({'device': each})} {size}\n" for each, size in budget.items()]
        lines.append(_head("conch_memory_server_bytes", "gauge", "Memory that the server takes without its models"))
        lines += [f"conch_memory_server_bytes{join({'device': each})} {size}\n" for each, size in own.items()]
    if models:
        lines.append(
            _head("conch_model_memory_bytes", "gauge", "Memory that a model takes, or would take if it did not sleep")
        )
        for each in models:
            for device, size in each.takes.items():
                labels = join({**_labels(each), "device": device, "state": each.state})
                lines.append(f"conch_model_memory_bytes{labels} {size}\n")
        for name, text, value in _COUNTERS:
            lines.append(_head(name, "counter", text))
            lines += [f"{name}{join(_labels(each))} {plain(value(each))}\n" for each in models]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _labels(model: ModelMemory) -> dict[str, str]:
    space = {"namespace": model.namespace} if model.namespace else {}
    return {**space, "model": model.name, "version": str(model.version)}


def _head(name: str, kind: str, text: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
