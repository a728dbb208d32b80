"""Reads a forest in a process of its own first: treelite trusts files, and some files end or stop a process.

It parses JSON and UBJSON recursively (a nested file overflows its stack), believes the lengths that a file gives,
and follows any number of a node or a feature. What comes through here can be read by the server. Run as a script, this
imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import json
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

#: The exit status of a file that is refused; the last line of the output says why, as JSON.
REFUSED: Final = 3

Array = np.ndarray[Any, Any]
Field = Callable[[str], Array]


def read(library: Any, path: Path, kind: str, allow_unknown_field: bool) -> Any:
    """The `treelite.Model` in a file of format `kind`. Raises what `library` raises, and ValueError."""
    front = library.frontend
    if kind == "treelite_checkpoint":
        return library.Model.deserialize(str(path))
    if kind == "lightgbm":
        _refuse_cut(path)
        return front.load_lightgbm_model(str(path))
    if kind == "xgboost_json":
        return front.load_xgboost_model(str(path), format_choice="json", allow_unknown_field=allow_unknown_field)
    if kind == "xgboost_ubj" or _holds_ubj(path):
        return front.load_xgboost_model(str(path), format_choice="ubjson", allow_unknown_field=allow_unknown_field)
    return front.load_xgboost_model_legacy_binary(str(path))


def check(model: Any) -> None:
    """Raises ValueError unless every place that an engine would follow exists."""
    field: Field = model.get_header_accessor().get_field
    classes, targets = field("num_class"), int(field("num_target")[0])
    if targets < 1 or len(classes) != targets or int(classes.min()) < 1:
        raise ValueError(f"it says that it has {targets} targets with {classes.tolist()[:5]} classes")
    most = int(classes.max())
    if len(field("base_scores")) != targets * most:
        raise ValueError(f"it has {len(field('base_scores'))} base scores for {targets * most} scores")
    for name, end in (("target_id", targets), ("class_id", most)):
        numbers = field(name)
        if len(numbers) != model.num_tree or not _within(numbers, -1, end):
            raise ValueError(f"its {name} does not fit {model.num_tree} trees and {end} values")
    width = int(np.prod(field("leaf_vector_shape"), dtype=np.int64))
    for index in range(model.num_tree):
        try:
            _check_tree(model.get_tree_accessor(index).get_field, int(model.num_feature), width)
        except ValueError as error:
            raise ValueError(f"tree {index}: {error}") from None


def _check_tree(field: Field, features: int, width: int) -> None:
    left, right, split = field("cleft"), field("cright"), field("split_index")
    count = len(left)
    columns = ("cright", "split_index", "default_left", "threshold", "leaf_value", "cmp", "node_type")
    if not count or any(len(field(name)) != count for name in columns):
        raise ValueError("its columns differ in length")
    inner = left != -1
    children = np.concatenate((left[inner], right[inner]))
    if not _within(children, 1, count) or len(np.unique(children)) != len(children):
        raise ValueError("its nodes are no tree")
    if not _within(split[inner], 0, features):
        raise ValueError(f"it asks for feature {int(split[inner].max())} of {features}")
    _check_spans(field, "category_list", count)
    _check_spans(field, "leaf_vector", count)
    sizes = (field("leaf_vector_end") - field("leaf_vector_begin"))[~inner]
    if not np.isin(sizes, (0, width)).all() or (width > 1 and (sizes == 0).any()):
        raise ValueError(f"it has leaves of {int(sizes.max(initial=0))} numbers, expected {width}")


def _check_spans(field: Field, name: str, count: int) -> None:
    begin, end = field(f"{name}_begin"), field(f"{name}_end")
    if len(begin) != count or len(end) != count or (begin > end).any() or int(end.max(initial=0)) > len(field(name)):
        raise ValueError(f"its {name} is shorter than its nodes say")


def _within(numbers: Array, begin: int, end: int) -> bool:
    return not len(numbers) or (int(numbers.min()) >= begin and int(numbers.max()) < end)


def _refuse_cut(path: Path) -> None:
    """A LightGBM file says how long each of its trees is; treelite reads one that ends early without a word."""
    content = path.read_bytes()
    sizes = re.search(rb"^tree_sizes=([\d ]+)$", content, re.MULTILINE)
    begin = content.find(b"\nTree=0")
    if sizes and len(content) - begin < sum(map(int, sizes[1].split())):
        raise ValueError(f"the file ends early, {len(sizes[1].split())} trees do not fit into it")


def _holds_ubj(path: Path) -> bool:
    """XGBoost from 2.1 on writes UBJSON under any name that does not end with .json: an object with a typed key."""
    with path.open("rb") as file:
        return file.read(2) in (b"{L", b"{i", b"{U")


def main() -> int:
    path, kind, allow = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        # Where memory runs out it is this process that goes, not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
    import treelite  # noqa: PLC0415

    try:
        check(read(treelite, Path(path), kind, allow == "True"))
    except Exception as error:  # noqa: BLE001  treelite raises bare exceptions, too
        sys.stdout.write(json.dumps(str(error) or type(error).__name__) + "\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
