"""What a function's docstring, and the fields of its structures, say of the model and its inputs."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from conch.functions.signature import Signature

#: Sections of Google's and NumPy's styles that list parameters; any other one ends them.
_PARAMETERS: Final = frozenset({"args", "arguments", "parameters", "params", "inputs"})
_GOOGLE: Final = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
_SPHINX: Final = re.compile(r":param\s+(?:[^:]*\s)?(\w+):\s*(.*)")
_NUMPY: Final = re.compile(r"(\w+)\s*(?::\s*.*)?")


def about(function: Callable[..., Any]) -> str:
    """The docstring's first paragraph, as one line."""
    text = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return " ".join(text.split())


def input_docs(function: Callable[..., Any], signature: Signature) -> dict[str, str]:
    """Input -> what is said of it; those of which nothing is said are left out."""
    said = _sections(inspect.getdoc(function) or "")
    docs: dict[str, str] = {}
    for argument in signature.arguments:
        described = {} if argument.build is None else _field_docs(argument.build)
        for field in argument.fields:
            text = described.get(field.attribute or field.name) or said.get(field.attribute or field.name)
            if text is None and argument.build is None:
                text = said.get(argument.name)
            if text:
                docs[field.name] = text
    return docs


def _field_docs(structure: Any) -> Mapping[str, str]:
    """Pydantic's `Field(description=...)`, and dataclasses' `field(metadata={"description": ...})`."""
    known = getattr(structure, "model_fields", None)
    if isinstance(known, dict):
        return {name: info.description for name, info in known.items() if info.description}
    if dataclasses.is_dataclass(structure):
        return {
            each.name: str(each.metadata["description"])
            for each in dataclasses.fields(structure)
            if "description" in each.metadata
        }
    return {}


def _sections(text: str) -> dict[str, str]:
    """Parameter -> text, in the styles of Google, NumPy and Sphinx."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    for match in map(_SPHINX.match, map(str.strip, lines)):
        if match:
            found[match[1]] = match[2].strip()
    inside, indent, current = False, -1, ""
    for place, line in enumerate(lines):
        stripped = line.strip()
        title = stripped.rstrip(":").lower()
        underlined = place + 1 < len(lines) and set(lines[place + 1].strip()) == {"-"}
        if (stripped.endswith(":") or underlined) and title.isalpha() and not line.startswith(" "):
            inside, indent, current = title in _PARAMETERS, -1, ""
            style = _NUMPY if underlined else _GOOGLE
            continue
        if not inside or not stripped or set(stripped) == {"-"}:
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent < 0 else indent
        match = style.fullmatch(stripped) if depth <= indent else None
        if match:
            current = match[1]
            found[current] = match[2].strip() if style is _GOOGLE else ""
        elif current:
            found[current] = f"{found[current]} {stripped}".strip()
    return found
