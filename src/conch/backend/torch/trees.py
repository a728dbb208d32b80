"""Names for the tensors of nested arguments and results, as Triton calls those of packages. Pure.

`ARGS[0]`, `ARGS[1][key]`, `KWARGS[name]`, `RESULT`, `RESULT[0]`, `RESULT[key][1]`: the leaves of PyTorch's pytree
specifications, in their order. Worker processes use this too.
"""

from __future__ import annotations

from typing import Any


def argument_paths(specification: Any) -> list[str]:
    """Of the specification of `(args, kwargs)`."""
    positional, named = children(specification)
    return [*paths(positional, "ARGS"), *paths(named, "KWARGS")]


def result_paths(specification: Any) -> list[str]:
    return paths(specification, "RESULT")


def paths(specification: Any, name: str) -> list[str]:
    inner = children(specification)
    if not inner:
        # A container of nothing has no leaf.
        return [] if specification.type in (tuple, list, dict) else [name]
    keys = specification.context if isinstance(specification.context, list) else range(len(inner))
    pairs = zip(keys, inner)  # noqa: B905  Python 3.9 has no `strict`
    return [path for key, each in pairs for path in paths(each, f"{name}[{key}]")]


def children(specification: Any) -> list[Any]:
    found = getattr(specification, "children", None)
    # A method in newer releases, an attribute of another name in older ones.
    return list(found() if callable(found) else specification.children_specs)


def plain_name(path: str, number: int, role: str) -> str:
    """A name that is short and says something: the key of a dictionary's entry, else `INPUT__<n>` or `OUTPUT__<n>`."""
    key = path[path.find("[") + 1 : -1] if path.endswith("]") else ""
    usable = key and not key.isdecimal() and "[" not in key and not path.startswith("ARGS")
    return key if usable else f"{role}__{number}"
