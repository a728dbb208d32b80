"""Which field of a config an error of the server's own rules speaks of. Pure."""

from __future__ import annotations

import re

from conch.check.outline import Field

#: Where entries with names of their own are: path of the entries -> the field that names one.
_NAMED = (
    (("input",), "name"),
    (("output",), "name"),
    (("sequence_batching", "control_input"), "name"),
    (("sequence_batching", "state"), "input_name"),
    (("model_warmup",), "name"),
    (("parameters",), "key"),
    (("instance_group",), "name"),
)


def locate(root: Field, message: str) -> Field | None:
    """The field that `message` names in quotes, as exactly as it does; None where it names nothing that is there."""
    words = re.findall(r"'([^']*)'", message) + re.findall(r"\bconch_\w+", message)
    entry = _step(root, message) or _entry(root, words)
    if entry is not None:
        fields = [child for child in entry.children or () if child.name in words and child.name not in {"name", "key"}]
        spoken = message.replace(" dimension ", " dims ")
        fields += [child for child in entry.children or () if re.search(rf"\b{child.name}\b", spoken)]
        return next((each for each in fields if each.name not in {"name", "key"}), entry)
    return next((found for word in words if (found := root.first(word)) is not None), None)


def entry_named(root: Field, kind: str, name: str) -> Field | None:
    """The entry of `input` or `output` that is called so."""
    return next((each for each in root.all(kind) if each.scalar("name") == name), None)


def _entry(root: Field, words: list[str]) -> Field | None:
    for word in words:
        for path, key in _NAMED:
            *above, last = path
            home = root.first(*above) if above else root
            for each in home.all(last) if home is not None else ():
                if word and each.scalar(key) == word:
                    return each
    return None


def _step(root: Field, message: str) -> Field | None:
    number = re.search(r"\bstep (\d+)\b", message)
    scheduling = root.first("ensemble_scheduling")
    if number is None or scheduling is None:
        return None
    steps = scheduling.all("step")
    return steps[int(number[1])] if int(number[1]) < len(steps) else None
